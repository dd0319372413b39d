"""HSTU (Zhai et al., arXiv 2402.17152): attention with SiLU in place of a softmax, and biases by relative position and time.

    U, V, Q, K = SiLU(LN(x) W);   A = SiLU(Q K^T + position bias + time bias) / N;   x = x + Wo (U * LN(A V)) + bo

N is the context length, a constant; the norms have no weights. Hidden states and item vectors have the norm 1, and their products
are divided by `TEMPERATURE`. Reference: meta-recsys/generative-recommenders `research/modeling/sequential/hstu.py`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.model.initialize import draw
from tenfold.rank.family import BUCKETS
from tenfold.rank.model import ItemModel, dropped
from tenfold.spec.model import ModelSpec

TEMPERATURE = 0.05
LOG_STEP = 0.301  # width of a time bucket in the natural logarithm of seconds, as in the reference: a factor of 1.35
EPS = 1e-6


def time_buckets(times: Tensor, T: int) -> Tensor:
    """The bucket of the time difference between query i and key j, int64 [B, T, T].

    With times int64 [B, T + 1] in seconds it is the time from item j to the item after i, with times [B, T] that from j to i.
    """
    seconds = (times[:, -T:, None] - times[:, None, :T]).abs().clamp(min=1)
    return (seconds.double().log() / LOG_STEP).long().clamp(max=BUCKETS - 1)


class _Lookup(torch.autograd.Function):
    """`table[index]` of a vector. PyTorch's own gradient adds the values one by one; this one is a single `bincount`."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(table)
        return table[index]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        grad = grad_outputs[0]
        summed = torch.bincount(index.flatten(), grad.float().flatten(), minlength=ctx.size)
        return summed.to(grad.dtype), None


def _lookup(table: Tensor, index: Tensor) -> Tensor:
    return table[index] if torch.compiler.is_compiling() else _Lookup.apply(table, index)


class HSTUBlock(nn.Module):
    """One layer. The rows of `uvqk` are those of U, V, Q and K, each with all heads."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        inner = spec.n_heads * spec.head_dim
        self.head_dim, self.context, self.dropout = spec.head_dim, spec.context, 0.0
        self.uvqk = nn.Linear(spec.dim, 4 * inner, bias=False)
        self.wo = nn.Linear(inner, spec.dim)
        self.position_bias = nn.Parameter(torch.zeros(2 * spec.context - 1))
        self.time_bias = nn.Parameter(torch.zeros(BUCKETS))

    def forward(self, x: Tensor, relative: Tensor, buckets: Tensor | None, mask: Tensor) -> Tensor:
        """The layer's output [B, T, dim], for x [B, T, dim].

        relative int64 [T, T] is the position of the key minus that of the query; buckets int64 [B, T, T] are `time_buckets`; mask
        is bool [B or 1, 1, T, T].
        """
        u, v, q, k = F.silu(self.uvqk(_norm(x))).chunk(4, -1)
        v, q, k = (t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for t in (v, q, k))
        bias = _lookup(self.position_bias, relative + self.context - 1)
        if buckets is not None:
            bias = (bias + _lookup(self.time_bias, buckets))[:, None]
        weights = F.silu(q @ k.mT + bias) * (mask / self.context)
        mixed = u * _norm((weights @ v).transpose(1, 2).flatten(2))
        return x + self.wo(dropped(mixed, self.dropout))


class HSTU(ItemModel):
    """The decoder of HSTU blocks, with learned positions."""

    def __init__(self, spec: ModelSpec):
        super().__init__(spec)
        self.norm = nn.Identity()  # type: ignore[assignment]
        self.positions = nn.ParameterList([torch.empty(spec.context, spec.dim)])
        draw("positions.0", self.positions[0], spec)

    def block(self, layer: int) -> Any:
        return HSTUBlock(self.spec)

    def item_vectors(self, table: Tensor) -> Tensor:
        return F.normalize(table, dim=-1, eps=EPS)

    def read(self, tokens: Tensor, positions: Tensor, mask: Tensor | None, times: Tensor | None, table: Tensor) -> Tensor:
        x = F.embedding(tokens, table) * self.spec.dim**0.5 + self.positions[0][positions]
        x, relative = dropped(x, self.dropout), positions[None, :] - positions[:, None]
        mask = (relative <= 0)[None, None] if mask is None else mask
        buckets = None if times is None else time_buckets(times, tokens.shape[1])
        for block in self.layers:
            x = block(x, relative, buckets, mask)
        return F.normalize(x, dim=-1, eps=EPS) / TEMPERATURE


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS)
