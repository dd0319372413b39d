"""Llama 3 in PyTorch, independent of parallelism and training.

    h = x + Attention(RMSNorm(x));   out = h + FeedForward(RMSNorm(h))

Reference: llama-models `models/llama3/model.py`. As there, the rotary embedding rotates adjacent pairs of dimensions. Hugging
Face rotates the first half of a head against the second half, so the rows of its checkpoints are permuted on reading and writing.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.model.attention import Cache, Mask, attend, document_mask
from tenfold.model.initialize import initialize
from tenfold.model.loss import cross_entropy
from tenfold.model.norm import RMSNorm
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec, RopeScaling

AttentionInputs = tuple[Tensor | None, Mask, Tensor | None]  # rotary positions, mask, temperature


def rope_frequencies(spec: ModelSpec) -> Tensor:
    """Rotary frequencies in radians per position, float32 [head_dim / 2], after `spec.rope_scaling`."""
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.int64).float() / spec.head_dim
    frequencies = 1.0 / (spec.rope_theta**exponents)
    s = spec.rope_scaling
    if s is None or s.rope_type == "dynamic":
        return frequencies
    if s.rope_type == "linear":
        return frequencies / s.factor
    if s.rope_type == "yarn":
        kept = _yarn_kept(s, spec)
        return frequencies / s.factor * (1 - kept) + frequencies * kept
    return _llama3_stretched(frequencies, s)


def _llama3_stretched(frequencies: Tensor, s: RopeScaling) -> Tensor:
    """Llama 3.1's scaling (llama-models `apply_scaling`): the frequencies of long wavelengths are divided by `factor`, those of
    short ones are kept, and those in between are interpolated linearly in the inverse wavelength."""
    wavelengths = 2 * math.pi / frequencies
    long = s.original_context / s.low_freq_factor
    short = s.original_context / s.high_freq_factor
    stretched = torch.where(wavelengths > long, frequencies / s.factor, frequencies)
    if s.high_freq_factor == s.low_freq_factor:
        return stretched
    smooth = (s.original_context / wavelengths - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    blended = (1 - smooth) * frequencies / s.factor + smooth * frequencies
    return torch.where((wavelengths <= long) & (wavelengths >= short), blended, stretched)


def _yarn_kept(s: RopeScaling, spec: ModelSpec) -> Tensor:
    """The share of each frequency that YaRN (arXiv 2309.00071) keeps, float32 [head_dim / 2]: 1 for high frequencies, 0 for low."""

    def pair(turns: float) -> float:  # the (fractional) index of the pair that makes `turns` rotations in the original context
        return spec.head_dim * math.log(s.original_context / (turns * 2 * math.pi)) / (2 * math.log(spec.rope_theta))

    low, high = pair(s.beta_fast), pair(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.head_dim - 1)
    ramp = (torch.arange(spec.head_dim // 2).float() - low) / (high - low if high != low else 0.001)
    return 1 - ramp.clamp(0, 1)


def rope_magnitude(spec: ModelSpec) -> float:
    """The factor that cosines and sines are multiplied by: 1, except for YaRN."""
    s = spec.rope_scaling
    if s is None or s.rope_type != "yarn":
        return 1.0
    return s.attention_factor or (0.1 * math.log(s.factor) + 1.0 if s.factor > 1 else 1.0)


def rope_factors(spec: ModelSpec) -> Tensor:
    """What `spec.rope_scaling` divides each rotary frequency by, float32 [head_dim / 2], as GGUF files store it."""
    return rope_frequencies(replace(spec, rope_scaling=None)) / rope_frequencies(spec)


def rope_table(spec: ModelSpec, positions: Tensor) -> Tensor:
    """Cosine and sine of every angle for `positions` [T]: float32 [T, head_dim / 2, 2]."""
    angles = positions.float()[:, None] * rope_frequencies(spec).to(positions.device)
    return torch.stack((angles.cos(), angles.sin()), -1) * rope_magnitude(spec)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate adjacent pairs of x [B, T, ..., head_dim] by the angles whose cosine and sine are in `rope` [T, head_dim / 2, 2]."""
    while rope.ndim < x.ndim:
        rope = rope.unsqueeze(1)
    pairs = x.unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling() or x.is_cuda:
        a, b = pairs.float().unbind(-1)
        cos, sin = rope.unbind(-1)
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)
    # In eager mode, one complex product makes a quarter of the passes over memory.
    turned = torch.view_as_complex(pairs.float().contiguous()) * torch.view_as_complex(rope)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions.

    One matrix product gives queries, keys and values. The rows of `wqkv` are, for each key-value head: the queries that share
    it, its key, its value, `head_dim` rows each. Tensor parallelism can therefore split the rows evenly without splitting a group.
    """

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.group, self.head_dim = spec.n_heads // spec.n_kv_heads, spec.head_dim
        self.qk_norm, self.norm_eps = spec.qk_norm, spec.norm_eps
        self.wqkv = nn.Linear(spec.dim, spec.n_kv_heads * (self.group + 2) * spec.head_dim, bias=spec.attention_bias)
        self.wo = nn.Linear(spec.n_heads * spec.head_dim, spec.dim, bias=spec.attention_bias)

    def forward(self, x: Tensor, rope: Tensor | None, mask: Mask, temperature: Tensor | None = None) -> Tensor:
        """Attention of x [B, T, dim]: [B, T, dim]. rope [T, head_dim / 2, 2]; mask None is plain causal; temperature [B, T]."""
        q, k, v = self.qkv(x, rope, temperature)
        return self.mix(q, k, v, mask)

    def qkv(self, x: Tensor, rope: Tensor | None, temperature: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, heads, T, head_dim], keys and values [B, kv heads, T, head_dim] of x [B, T, dim].

        Without `rope`, queries and keys are not rotated (Llama 4's global layers). With `spec.qk_norm`, rotated queries and keys
        are divided by their root mean square. `temperature` scales the queries.
        """
        qkv = self.wqkv(x).unflatten(-1, (-1, self.group + 2, self.head_dim))
        qk, v = qkv.split((self.group + 1, 1), dim=3)
        if rope is not None:
            qk = rotate(qk, rope)
            if self.qk_norm:
                qk = F.rms_norm(qk.float(), (self.head_dim,), eps=self.norm_eps).to(v.dtype)
        q, k = qk.split((self.group, 1), dim=3)
        if temperature is not None:
            q = (q * temperature[:, :, None, None, None]).to(v.dtype)
        q, k, v = (t.flatten(2, 3).transpose(1, 2) for t in (q, k, v))
        return q, k, v

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """Attention followed by the output projection: [B, T, dim]. `mask` None is plain causal."""
        return self.wo(attend(q, k, v, mask).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, dim: int, hidden: int, bias: bool = False):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=bias)
        self.w2 = nn.Linear(hidden, dim, bias=bias)
        self.w3 = nn.Linear(dim, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """One decoder layer. `ffn` is its feed-forward; by default a `FeedForward` of width `spec.ffn_dim`."""

    def __init__(self, spec: ModelSpec, ffn: nn.Module | None = None):
        super().__init__()
        self.attention_norm = RMSNorm(spec.dim, eps=spec.norm_eps)
        self.attention = Attention(spec)
        self.ffn_norm = RMSNorm(spec.dim, eps=spec.norm_eps)
        self.ffn = FeedForward(spec.dim, spec.ffn_dim, spec.mlp_bias) if ffn is None else ffn

    def forward(self, x: Tensor, rope: Tensor | None, mask: Mask, temperature: Tensor | None = None) -> Tensor:
        return self.fed(self.attended(x, rope, mask, temperature))

    def attended(self, x: Tensor, rope: Tensor | None, mask: Mask, temperature: Tensor | None = None) -> Tensor:
        """x plus the attention of x: the first half of the block."""
        return x + self.attention(self.attention_norm(x), rope, mask, temperature)

    def fed(self, h: Tensor) -> Tensor:
        """h plus the feed-forward of h: the second half of the block."""
        return h + self.ffn(self.ffn_norm(h))


class Llama(nn.Module):
    """The decoder. `forward` returns logits; `loss` computes them in chunks, so that they are never all in memory.

    `mtp` is the multi-token prediction module (`tenfold.model.mtp`), where a run has one. `document_mask` makes the attention
    mask from the document numbers [B, T] of a batch; a run on a GPU replaces it by one that makes a `BlockMask`.
    """

    document_mask: Callable[[Tensor], Mask] = staticmethod(document_mask)

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        self.mtp: nn.Module | None = None
        self.embedding = nn.Embedding(spec.vocab_size, spec.dim)
        self.blocks = nn.ModuleList([self.block(layer) for layer in range(spec.n_layers)])
        self.norm = RMSNorm(spec.dim, eps=spec.norm_eps)
        self.head = nn.Linear(spec.dim, spec.vocab_size, bias=False)
        if spec.tied:
            self.head.weight = self.embedding.weight
        initialize(self, spec)

    def block(self, layer: int) -> Block:
        """A new block for layer number `layer` (from 0)."""
        return Block(self.spec)

    @property
    def layers(self) -> list[Block]:
        """The blocks as a list with their type."""
        return cast(list[Block], list(self.blocks.children()))

    def forward(self, tokens: Tensor, document: Tensor | None = None, **inputs: Any) -> Tensor:
        """Logits float32 [B, T, vocab]. `inputs` are passed on to `embed`."""
        return self.head(self.hidden(tokens, document, **inputs)).float()

    def hidden(self, tokens: Tensor, document: Tensor | None = None, **inputs: Any) -> Tensor:
        """The last hidden state after the final norm, [B, T, dim], for tokens [B, T]; attention stays within each document."""
        return self.norm(self.through(self.embed(tokens, **inputs), document))

    def embed(self, tokens: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Embedded tokens [B, T, dim]. A model with an image encoder also takes `pixels`; others raise TenfoldError."""
        if pixels is not None:
            raise TenfoldError(f"{self.spec.name} has no image encoder: give it text only.")
        x = self.embedding(tokens)
        # On a GPU the residual stream has the dtype of the matrix products, which halves the memory traffic between them.
        return x.to(torch.get_autocast_dtype("cuda")) if x.is_cuda and torch.is_autocast_enabled("cuda") else x

    def through(
        self,
        x: Tensor,
        document: Tensor | None = None,
        blocks: list[tuple[int, Block]] | None = None,
        length: int | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Embedded tokens x [B, T, dim] after all blocks, or after `blocks`, each given with the number of its layer.

        `length` is the number of tokens in a row, by default T; it is larger where x holds only a part of each row's positions.
        With a `cache`, x [1, T, dim] stands at the cache's positions and also attends to the tokens in the cache.
        """
        positions = torch.arange(length or x.shape[1], device=x.device) if cache is None else cache.positions
        inputs = self.attention_inputs(positions, document, cache)
        for layer, block in blocks or enumerate(self.layers):
            x = block(x, *inputs(layer))
        return x

    def attention_inputs(self, positions: Tensor, document: Tensor | None, cache: Cache | None) -> Callable[[int], AttentionInputs]:
        """A function from the number of a layer to the inputs of its attention other than the hidden state."""
        rope = rope_table(self.spec, positions)
        mask = None if document is None else self.document_mask(document)
        return lambda layer: (rope, mask if cache is None else cache.layer(layer), None)

    def loss(
        self, tokens: Tensor, targets: Tensor, document: Tensor | None = None, z_loss: float = 0.0, **inputs: Any
    ) -> tuple[Tensor, Tensor]:
        """Two sums over the targets that are not -100: the negative log-likelihood in nats, and the additional training losses.

        The additional losses are the z-loss, `z_loss` times the squared log-partition (PaLM, arXiv 2204.02311, section 5), and
        `extra_loss`; they are zero where gradients are off. `inputs` are passed on to `embed`.
        """
        hidden = self.hidden(tokens, document, **inputs)
        nats, extra = cross_entropy(hidden.flatten(0, 1), self.head.weight, targets.flatten(), z_loss)
        if torch.is_grad_enabled():
            extra = extra + self.extra_loss(hidden, tokens, targets, document)
        return nats, extra

    def extra_loss(self, hidden: Tensor, tokens: Tensor, targets: Tensor, document: Tensor | None) -> Tensor:
        """Losses other than that of the next token, summed over the targets. `hidden` is the last hidden state [B, T, dim]."""
        if self.mtp is None:
            return torch.zeros((), device=hidden.device)
        return self.mtp(hidden, tokens, targets, document, self.embedding, self.head)
