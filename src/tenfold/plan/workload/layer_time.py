"""The time of one layer and of the output head for one micro-batch, from their matrix products, bytes and collectives."""

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

from tenfold.plan.workload.kernels import (
    all_to_all_s,
    fused_attention_s,
    matmul_s,
    moved_s,
    ring_s,
    unfused_attention_s,
)
from tenfold.plan.workload.machine import Machine
from tenfold.spec.layout import Layout
from tenfold.spec.model import ModelSpec

KERNELS_FORWARD = 22  # kernels of one dense layer: 6 products, 2 norms, rotations, residuals, activation, attention
KERNELS_BACKWARD = 40
KERNELS_HEAD = 40  # embedding, last norm, output head and loss, forward and backward
KERNELS_COLLECTIVE = 2  # launches of the two collectives of a layer, per direction
HIDES = 0.5  # share of the matrix products behind which the all-to-all of experts can be hidden
# Bytes moved to cast a value for products: read in 16 bits, written once by rows and once by columns; fp4 reads it once more, for
# the scale of the whole tensor.
CAST_BYTES = {"bf16": 0.0, "fp8": 4.0, "fp4": 5.125}


class Part(NamedTuple):
    """The parts of a layout on which the time of a layer depends; `rows` are the sequences of a micro-batch."""

    tp: int
    cp: int
    ep: int
    etp: int
    rows: int
    seq_len: int
    dtype: str

    @classmethod
    def of(cls, layout: Layout) -> "Part":
        return cls(layout.tp, layout.cp, layout.ep, layout.etp, layout.rows_together, layout.seq_len, layout.dtype)

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch in a tensor parallel group."""
        return self.rows * _share(self.seq_len, self.cp)


class LayerKind(NamedTuple):
    """Layers of equal time: with experts or without, and with the mean number of `keys` that a query attends to."""

    expert: bool
    keys: float


class Ways(NamedTuple):
    """Seconds of a forward and of a backward pass."""

    forward: float
    backward: float

    def plus(self, other: "Ways", by: float = 1.0) -> "Ways":
        return Ways(self.forward + by * other.forward, self.backward + by * other.backward)


@dataclass(frozen=True)
class LayerTime:
    """Seconds of one layer and micro-batch on one GPU, forward and backward."""

    matmul: Ways
    attention: Ways
    pointwise: Ways
    tensor_parallel: Ways
    context_parallel: Ways
    expert_parallel: Ways
    kernels: tuple[int, int]

    @property
    def forward_s(self) -> float:
        """Seconds of the forward pass without communication."""
        return self.matmul.forward + self.attention.forward + self.pointwise.forward


def _products(shapes: list[tuple[int, int, int]], machine: Machine, dtype: str) -> Ways:
    """Seconds of matrix products of shapes (tokens, outputs, inputs), and of their gradients by input and by weight."""
    forward = sum(matmul_s(m, n, k, machine, dtype) for m, n, k in shapes)
    backward = sum(matmul_s(m, k, n, machine, dtype) + matmul_s(k, n, m, machine, dtype) for m, n, k in shapes)
    if cast := CAST_BYTES[dtype]:
        forward += moved_s(cast * sum(m * k for m, _, k in shapes), machine)
        backward += moved_s(cast * sum(m * n for m, n, _ in shapes), machine)
    return Ways(forward, backward)


@lru_cache(maxsize=100)
def last_of(ranks: int) -> float:
    """The expected maximum of `ranks` standard normal values (Blom 1958): how much later than the mean the last rank is."""
    return NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def _share(value: int, ranks: int) -> int:
    return math.ceil(value / ranks)


@dataclass(frozen=True)
class _Routed:
    """The routed experts of a layer on one GPU: seconds of their products, the `fullest` rank's tokens over the mean, and the
    tokens (times experts per token) of that rank."""

    products: Ways
    fullest: float
    tokens: float


def _routed(spec: ModelSpec, part: Part, machine: Machine) -> _Routed:
    """The routed experts of the fullest rank. With whole experts (`etp` 1) each tensor parallel rank routes its own tokens."""
    stack, local = machine.stack, max(1, spec.n_experts // part.ep)
    own = part.tokens * part.etp / part.tp
    fullest = 1 + stack.imbalance * last_of(part.ep) / local**0.5  # the fullest rank's tokens over the mean
    tokens = fullest * own * spec.experts_per_token
    rows, ffn = max(1, round(tokens / local)), _share(spec.expert_ffn_dim, part.etp)
    one = _products([(rows, 2 * ffn, spec.dim), (rows, spec.dim, ffn)], machine, part.dtype)
    grouped = 2 * (local - 1) * machine.constants.kernel_s  # one grouped kernel for all experts of a rank
    router = _products([(math.ceil(own), spec.n_experts, spec.dim)], machine, "bf16")
    forward, backward = (local * way / stack.grouped for way in one)
    return _Routed(Ways(forward - grouped, backward - 2 * grouped).plus(router), fullest, tokens)


@lru_cache(maxsize=20_000)
def layer_time(spec: ModelSpec, kind: LayerKind, part: Part, machine: Machine) -> LayerTime:
    """The time of one layer of a kind for one micro-batch."""
    stack, tp, h, d = machine.stack, part.tp, spec.dim, spec.head_dim
    heads, kv_heads = _share(spec.n_heads, tp), _share(spec.n_kv_heads, tp)
    ffn = spec.ffn_dim if not kind.expert else spec.expert_ffn_dim * spec.n_shared_experts
    shapes = [(part.tokens, (heads + 2 * kv_heads) * d, h), (part.tokens, h, heads * d)]
    if ffn:
        shapes += [(part.tokens, 2 * _share(ffn, tp), h), (part.tokens, h, _share(ffn, tp))]
    products = _products(shapes, machine, part.dtype)
    per_token = 22 * h / (tp if stack.sequence_parallel else 1) + 16 * (heads + kv_heads) * d + 6 * ffn / tp  # bytes moved
    exchange = Ways(0.0, 0.0)
    if kind.expert:
        routed = _routed(spec, part, machine)
        exchange = _exchange(spec, part, routed.tokens, products.plus(routed.products), machine)
        products = products.plus(routed.products)
        sent_on = routed.tokens / part.tokens
        per_token += 6 * sent_on * spec.expert_ffn_dim / part.etp + 2 * 4 * sent_on * h  # sorted by expert, and back
    moved = stack.pointwise * part.tokens * per_token
    if stack.fused_attention:
        attention = Ways(*fused_attention_s(part.rows * heads, part.seq_len / part.cp, kind.keys, d, machine))
    else:
        attention = Ways(*unfused_attention_s(part.rows * heads, part.seq_len, d, machine))
    gathered = 2 * ring_s(2.0 * part.tokens * h, tp, 1, machine)  # an all-reduce, or an all-gather and a reduce-scatter
    passes = 1 if kind.expert and part.etp < tp else 2  # whole experts need no collective of the tensor parallel ranks
    tensor = passes * ((1 - stack.hidden_tp) * gathered + stack.skew_s * last_of(tp))
    context = ring_s(4.0 * part.rows * part.seq_len * kv_heads * d, part.cp, tp, machine)
    hidden = attention.forward * 0.8
    return LayerTime(
        matmul=products,
        attention=attention,
        pointwise=Ways(moved_s(moved, machine, 8), moved_s(1.6 * moved, machine, 14)),
        tensor_parallel=Ways(tensor, tensor),
        context_parallel=Ways(max(0.0, context - hidden), max(0.0, 2 * context - 2.5 * hidden)),
        expert_parallel=exchange,
        kernels=(
            KERNELS_FORWARD + 12 * kind.expert + KERNELS_COLLECTIVE * (tp > 1),
            KERNELS_BACKWARD + 20 * kind.expert + KERNELS_COLLECTIVE * (tp > 1),
        ),
    )


def _exchange(spec: ModelSpec, part: Part, tokens: float, products: Ways, machine: Machine) -> Ways:
    """Seconds of the all-to-alls to the experts and back that are not hidden behind the layer's products."""
    stack = machine.stack
    sent = tokens * spec.dim * 2.0 / (part.etp if stack.sequence_parallel else 1)
    both = 2 * all_to_all_s(sent, part.ep, part.etp, machine, spec.experts_per_token)
    return Ways(*(both - min(stack.hidden_ep * both, HIDES * stack.hidden_ep * way) for way in products))


@lru_cache(maxsize=20_000)
def head_time(spec: ModelSpec, part: Part, machine: Machine) -> float:
    """Seconds of the output head and the loss for one micro-batch, forward and backward."""
    tokens, columns = part.tokens, _share(spec.vocab_size, part.tp)
    products = _products([(tokens, columns, spec.dim)], machine, "bf16")
    scores = tokens * columns
    return sum(products) + moved_s(10.0 * scores, machine, 4) + moved_s(8.0 * scores, machine, 4)
