"""From a compute in FLOPs to a model's shape and its training tokens. Trainer, ladder and planner all use these functions."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from tenfold.spec.errors import TenfoldError
from tenfold.spec.laws import LLAMA3, between, optimum
from tenfold.spec.model import ModelSpec
from tenfold.spec.plugins import load
from tenfold.spec.units import si

LARGEST_HEAD = 128  # dimensions of an attention head
HEAD_DIMS = ((128, 16), (512, 32), (2048, 64), (math.inf, LARGEST_HEAD))  # (up to this width, about this many dimensions)
WIDTH_PER_LAYER = 40
FFN_PER_WIDTH = 8 / 3
LADDER_WIDTH = 512  # up to here, depth and feed-forward width are proportional to width
# (width, layers, feed-forward width) of Llama 3's 1B, 8B, 70B and 405B; in between they are interpolated in logarithms.
PUBLISHED = ((2048, 16, 8192), (4096, 32, 14336), (8192, 80, 28672), (16384, 126, 53248))
KV_HEADS = 8  # of these published models
TOKENS_PER_PARAMETER = 20.0


@dataclass(frozen=True)
class Experts:
    """`n` routed experts in every `every`-th layer, of which each token uses `per_token`, beside `shared` experts for all tokens.

    The experts that a token uses are together as wide as the dense feed-forward, so that the FLOPs per token stay the same.
    """

    n: int = 16
    per_token: int = 1
    shared: int = 1
    every: int = 1


class Shape(NamedTuple):
    """A model, its training tokens and FLOPs, and sentences that give the reasons."""

    spec: ModelSpec
    tokens: int
    flops: float
    reasons: tuple[str, ...] = ()


def llama_shape(width: int, vocab_size: int, context: int = 2048, tied: bool = False) -> ModelSpec:
    """The Llama-3-shaped model of a width.

    Up to `LADDER_WIDTH`, depth is width / `WIDTH_PER_LAYER` (at least 2). Beyond it, depth and feed-forward width are interpolated
    between the published models; beyond those, depth is a multiple of 16. From the first published model on there are `KV_HEADS`
    key-value heads. Raises TenfoldError for a width that no number of heads divides.
    """
    n_heads = _heads(width)
    return ModelSpec(
        name=f"width-{width}",
        dim=width,
        n_layers=_layers(width),
        n_heads=n_heads,
        n_kv_heads=n_heads if width < PUBLISHED[0][0] else KV_HEADS,
        head_dim=width // n_heads,
        ffn_dim=_multiple(_ffn(width), width),
        vocab_size=vocab_size,
        tied=tied,
        context=context,
    )


def llama4_shape(width: int, vocab_size: int, context: int = 2048, tied: bool = False, experts: Experts = Experts()) -> ModelSpec:
    """The Llama-4-shaped model of a width: `llama_shape` with feed-forwards divided into `experts`."""
    if experts.per_token > experts.n:
        raise TenfoldError(f"{experts.per_token} experts per token cannot be chosen from {experts.n}.")
    dense = llama_shape(width, vocab_size, context, tied)
    return replace(
        dense,
        family="llama4",
        n_experts=experts.n,
        experts_per_token=experts.per_token,
        n_shared_experts=experts.shared,
        expert_ffn_dim=_multiple(dense.ffn_dim / (experts.per_token + experts.shared), width, of_published=256),
        moe_every=experts.every,
        attention_chunk=8192,
        nope_every=4,
        qk_norm=True,
        temperature_floor=8192,
    )


def _heads(width: int) -> int:
    """The number of attention heads, each of an even number of dimensions, about those of `HEAD_DIMS`. Beyond the first published
    model: the smallest multiple of `KV_HEADS` whose heads have at most `LARGEST_HEAD` dimensions."""
    if width > PUBLISHED[0][0]:
        counts = range(KV_HEADS * math.ceil(width / KV_HEADS / LARGEST_HEAD), width, KV_HEADS)
        if n_heads := next((n for n in counts if width % (2 * n) == 0), 0):
            return n_heads
    head_dim = next(size for widest, size in HEAD_DIMS if width <= widest)
    n_heads = max(1, round(width / head_dim))
    if width < 16 or width % (2 * n_heads):
        raise TenfoldError(f"A width near {width} must be a multiple of {head_dim}.")
    return n_heads


def _layers(width: int) -> int:
    if width <= LADDER_WIDTH:
        return max(2, round(width / WIDTH_PER_LAYER))
    points = [(LADDER_WIDTH, LADDER_WIDTH / WIDTH_PER_LAYER), *((w, n) for w, n, _ in PUBLISHED)]
    even = 16 if width > PUBLISHED[-1][0] else 2  # so that pipelines divide it evenly: the deepest stage sets the pace
    return even * round(between(points, width) / even)


def _ffn(width: int) -> float:
    if width <= LADDER_WIDTH:
        return width * FFN_PER_WIDTH
    return between([(LADDER_WIDTH, LADDER_WIDTH * FFN_PER_WIDTH), *((w, ffn) for w, _, ffn in PUBLISHED)], width)


def _multiple(value: float, width: int, of_published: int = 1024) -> int:
    """`value` rounded to a multiple of 8, 64 or `of_published`, depending on the width of the model."""
    step = 8 if width <= LADDER_WIDTH else 64 if width < PUBLISHED[0][0] else of_published
    return max(1, round(value / step)) * step


def shape_of(family: str, width: int, vocab_size: int, experts: Experts | None = None) -> ModelSpec:
    """The model of a family and width; with `experts`, a Llama 4 one. Raises TenfoldError for an unknown family or width."""
    if experts is not None:
        return llama4_shape(width, vocab_size, experts=experts)
    return load("families", family).shape(width, vocab_size)


def widths() -> list[int]:
    """The widths to choose from, 24 to 65,536, each 7 to 33 % above the one before; from 2,048 on by 13 % at most."""
    found = list(range(24, 49, 8))
    for first, end, step in ((64, 129, 16), (160, 257, 32), (320, 513, 64), (640, 1025, 128), (1280, 4097, 256), (4608, 8193, 512)):
        found += range(first, end, step)
    return [*found, *range(9216, 16385, 1024), *range(18432, 32769, 2048), *range(36864, 65537, 4096)]


def shape_for_params(params: float, vocab_size: int, family: str = "llama3", experts: Experts | None = None) -> ModelSpec:
    """The model whose active matrix parameters (`Parameters.matrix_active`) are nearest to `params`, by ratio."""
    return min(_models(vocab_size, family, experts), key=lambda spec: abs(math.log(spec.parameters().matrix_active / params)))


def _models(vocab_size: int, family: str, experts: Experts | None) -> list[ModelSpec]:
    return [shape_of(family, width, vocab_size, experts) for width in widths()]


def shape_for_flops(
    flops: float, vocab_size: int, seq_len: int, *, family: str = "llama3", experts: Experts | None = None, law: str | None = None
) -> Shape:
    """The model and the tokens for a compute of `flops`, as `ModelSpec.train_flops_per_token` counts them.

    `law` is the name of a published law or the path of a law.json. Without one: 20 tokens per parameter, or as many as Llama 3's
    law asks for if that is more, which it is from about 2e21 FLOPs on. Raises TenfoldError for an unknown law.
    """
    if law is not None:
        best = optimum(flops, law)
        spec = shape_for_params(best.params, vocab_size, family, experts)
        why = f"best are {si(best.params)} parameters and {si(best.tokens)} tokens by {best.source}"
    else:
        llama3 = optimum(flops, LLAMA3)
        ratio = max(TOKENS_PER_PARAMETER, llama3.tokens / llama3.params)
        spec = min(
            _models(vocab_size, family, experts),
            key=lambda m: abs(flops / m.train_flops_per_token(seq_len) / m.parameters().matrix_active / ratio - 1),
        )
        why = f"{ratio:.0f} tokens per parameter" + (f" by {llama3.source}" if ratio > TOKENS_PER_PARAMETER else "")
    tokens = round(flops / spec.train_flops_per_token(seq_len))
    reason = f"Model: width {spec.dim}, {si(spec.parameters().active)} active parameters, {si(tokens)} tokens; {why}."
    return Shape(spec, tokens, flops, (reason,))
