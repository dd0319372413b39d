"""Text from a model, one sequence at a time, with a cache of keys and values."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tenfold.model.io.huggingface import read_model
from tenfold.model.io.tokenizer import read_tokenizer, read_vocabulary
from tenfold.model.llama import Llama, rope_table
from tenfold.model.llama4 import Llama4, attention_temperature


@torch.no_grad()
def generate(
    model: Llama,
    tokens: list[int],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    pixels: Tensor | None = None,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` tokens that follow `tokens`. Temperature 0 takes the likeliest each time.

    `pixels` [tiles, 3, S, S] are the tiles of the images whose patch tokens stand in `tokens`.
    """
    generator = torch.Generator().manual_seed(seed)
    cache: list[tuple[Tensor, Tensor]] = []
    new, start = torch.tensor([tokens]), 0
    for _ in range(max_new_tokens):
        logits = _forward(model, new, start, cache, pixels if start == 0 else None)
        start += new.shape[1]
        token = _draw(logits, temperature, top_p, generator)
        yield token
        new = torch.tensor([[token]])


def _forward(
    model: Llama, tokens: Tensor, start: int, cache: list[tuple[Tensor, Tensor]], pixels: Tensor | None = None
) -> Tensor:
    """Logits [vocab] of the last of `tokens` [1, T], which stand at `start`; the cache grows by their keys and values."""
    spec, queries, keys = model.spec, torch.arange(start, start + tokens.shape[1]), torch.arange(start + tokens.shape[1])
    rope = rope_table(spec, queries)
    temperature = attention_temperature(spec, queries[None])
    everywhere = nearby = keys <= queries[:, None]
    if chunk := spec.attention_chunk:
        nearby = everywhere & (keys // chunk == queries[:, None] // chunk)
    x = model.embedding(tokens)
    if pixels is not None:
        assert isinstance(model, Llama4)
        x = model.see(x, tokens, pixels)
    for i, block in enumerate(model.layers):
        local = spec.is_local(i)
        q, k, v = block.attention.qkv(block.attention_norm(x), rope if local else None, None if local else temperature)
        if i < len(cache):
            k, v = torch.cat((cache[i][0], k), 2), torch.cat((cache[i][1], v), 2)
            cache[i] = (k, v)
        else:
            cache.append((k, v))
        h = x + block.attention.mix(q, k, v, nearby if local else everywhere)
        x = h + block.ffn(block.ffn_norm(h))
    return model.head(model.norm(x[:, -1:])).float()[0, 0]


def _draw(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    probabilities, order = (logits / temperature).softmax(-1).sort(descending=True)
    keep = probabilities.cumsum(-1) - probabilities < top_p
    return int(order[torch.multinomial(probabilities * keep, 1, generator=generator)])


def complete(
    path: Path, prompt: str, *, max_new_tokens: int, temperature: float, top_p: float, seed: int, pixels: Tensor | None = None
) -> str:
    """`prompt` and what the model in `path` writes after it, up to the end of the text; `pixels` as in `generate`.

    Tokens that stand for images are not in the text.
    """
    model = read_model(path)
    tokenizer = read_tokenizer(path)
    tokens = tokenizer.encode(prompt).ids
    ends = read_vocabulary(path).stop_tokens
    for token in generate(model, tokens, max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, pixels=pixels):
        if token in ends:
            break
        tokens.append(token)
    return tokenizer.decode(tokens)
