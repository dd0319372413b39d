"""The time of one optimizer step, by part, from the shape of the model, the layout and the machine."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

from tenfold.plan.workload.kernels import (
    all_to_all_s,
    fused_attention_s,
    matmul_s,
    moved_s,
    point_to_point_s,
    ring_s,
    unfused_attention_s,
)
from tenfold.plan.workload.machine import Machine, Stack
from tenfold.plan.workload.workload import Layout, StepTime
from tenfold.spec.model import ModelSpec

KERNELS_FORWARD = 22  # kernels of one dense layer: 6 products, 2 norms, rotations, residuals, activation, attention
KERNELS_BACKWARD = 40
KERNELS_HEAD = 40  # embedding, last norm, output head and loss, both ways
KERNELS_COLLECTIVE = 2  # one launch each of the two collectives of a layer and way
HIDES = 0.5  # share of the products that an exchange between experts may run beside
CAST_BYTES = 4.0  # a value read in 16 bits and written in 8, once by rows and once by columns


@dataclass(frozen=True)
class LayerTime:
    """Seconds of one layer and micro-batch on one GPU, forward and backward."""

    matmul: tuple[float, float]
    attention: tuple[float, float]
    pointwise: tuple[float, float]
    tensor_parallel: tuple[float, float]
    context_parallel: tuple[float, float]
    expert_parallel: tuple[float, float]
    kernels: tuple[int, int]

    def device(self, way: int) -> float:
        return self.matmul[way] + self.attention[way] + self.pointwise[way]


def _products(shapes: list[tuple[int, int, int]], machine: Machine, dtype: str) -> tuple[float, float]:
    """(forward, backward) seconds of matrix products (tokens, outputs, inputs): backward by input and by weight."""
    forward = sum(matmul_s(m, n, k, machine, dtype) for m, n, k in shapes)
    backward = sum(matmul_s(m, k, n, machine, dtype) + matmul_s(k, n, m, machine, dtype) for m, n, k in shapes)
    if dtype == "fp8":
        forward += moved_s(CAST_BYTES * sum(m * k for m, _, k in shapes), machine)
        backward += moved_s(CAST_BYTES * sum(m * n for m, n, _ in shapes), machine)
    return forward, backward


@lru_cache(maxsize=100)
def last_of(ranks: int) -> float:
    """How much later than the mean the last of `ranks` comes, in standard deviations of a normal spread (Blom 1958)."""
    return NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def _share(value: int, ranks: int) -> int:
    return math.ceil(value / ranks)


@lru_cache(maxsize=20_000)
def layer_time(
    spec: ModelSpec, expert: bool, keys: float, tp: int, cp: int, ep: int, micro_batch: int, seq_len: int, dtype: str,
    machine: Machine,
) -> LayerTime:  # fmt: skip
    """One layer, `keys` attended per query on average; `expert` where its feed-forward is routed."""
    stack = machine.stack
    tokens = micro_batch * _share(seq_len, cp)
    heads, kv_heads = _share(spec.n_heads, tp), _share(spec.n_kv_heads, tp)
    h, d = spec.dim, spec.head_dim
    shapes = [(tokens, (heads + 2 * kv_heads) * d, h), (tokens, h, heads * d)]
    ffn = spec.ffn_dim if not expert else spec.expert_ffn_dim * spec.n_shared_experts
    if ffn:
        shapes += [(tokens, 2 * _share(ffn, tp), h), (tokens, h, _share(ffn, tp))]
    forward, backward = _products(shapes, machine, dtype)
    width = ffn / tp
    sent_experts = 0.0
    if expert:
        local = max(1, spec.n_experts // ep)
        fullest = 1 + stack.imbalance * last_of(ep) / local**0.5  # the fullest rank's tokens over the mean
        routed = fullest * tokens * spec.experts_per_token
        rows = max(1, round(routed / local))
        f, b = _products(
            [(rows, 2 * _share(spec.expert_ffn_dim, tp), h), (rows, h, _share(spec.expert_ffn_dim, tp))], machine, dtype
        )
        grouped = 2 * (local - 1) * machine.constants.kernel_s  # one grouped kernel for all experts of a rank
        router_f, router_b = _products([(tokens, spec.n_experts, h)], machine, "bf16")
        forward += local * f / stack.grouped - grouped + router_f
        backward += local * b / stack.grouped - 2 * grouped + router_b
        width += fullest * spec.experts_per_token * spec.expert_ffn_dim / tp
        sent_experts = routed * h * 2.0 / (tp if stack.sequence_parallel else 1)

    if stack.fused_attention:
        attention = fused_attention_s(micro_batch * heads, seq_len / cp, keys, d, machine)
    else:
        attention = unfused_attention_s(micro_batch * heads, seq_len, d, machine)

    whole = 22 * h / (tp if stack.sequence_parallel else 1) + 16 * (heads + kv_heads) * d + 6 * width
    if expert:
        whole += 2 * 4 * fullest * spec.experts_per_token * h  # tokens are put in order for the experts and back
    bytes_moved = stack.pointwise * tokens * whole
    pointwise = moved_s(bytes_moved, machine, 8), moved_s(1.6 * bytes_moved, machine, 14)

    gathered = 2 * ring_s(2.0 * tokens * h, tp, 1, machine)  # an all-reduce, or an all-gather and a reduce-scatter
    tensor = 2 * ((1 - stack.hidden_tp) * gathered + stack.skew_s * last_of(tp))
    kv_bytes = 4.0 * micro_batch * seq_len * kv_heads * d
    context = ring_s(kv_bytes, cp, tp, machine)
    hidden = attention[0] * 0.8
    exchanged = 2 * all_to_all_s(sent_experts, ep, tp, machine, spec.experts_per_token) if expert else 0.0
    hidden_ep = [min(stack.hidden_ep * exchanged, HIDES * stack.hidden_ep * x) for x in (forward, backward)]
    return LayerTime(
        matmul=(forward, backward),
        attention=attention,
        pointwise=pointwise,
        tensor_parallel=(tensor, tensor),
        context_parallel=(max(0.0, context - hidden), max(0.0, 2 * context - 2.5 * hidden)),
        expert_parallel=(exchanged - hidden_ep[0], exchanged - hidden_ep[1]),
        kernels=(
            KERNELS_FORWARD + 12 * expert + KERNELS_COLLECTIVE * (tp > 1),
            KERNELS_BACKWARD + 20 * expert + KERNELS_COLLECTIVE * (tp > 1),
        ),
    )


@lru_cache(maxsize=20_000)
def head_time(spec: ModelSpec, tp: int, cp: int, micro_batch: int, seq_len: int, machine: Machine) -> tuple[float, float]:
    """(forward, backward) seconds of the output head and the loss of one micro-batch."""
    tokens = micro_batch * _share(seq_len, cp)
    columns = _share(spec.vocab_size, tp)
    forward, backward = _products([(tokens, columns, spec.dim)], machine, "bf16")
    scores = tokens * columns
    return forward + moved_s(10.0 * scores, machine, 4), backward + moved_s(8.0 * scores, machine, 4)


@lru_cache(maxsize=1000)
def layer_kinds(spec: ModelSpec, seq_len: int) -> tuple[tuple[bool, float, int], ...]:
    """(routed, keys attended, how many) of the layers that differ in time."""
    kinds: dict[tuple[bool, float], int] = {}
    for layer in range(spec.n_layers):
        key = (bool(spec.n_experts) and (layer + 1) % spec.moe_every == 0, spec.attended(seq_len, layer))
        kinds[key] = kinds.get(key, 0) + 1
    return tuple((expert, keys, count) for (expert, keys), count in kinds.items())


def _waiting_s(device_s: float, kernels: float, stack: Stack) -> float:
    """Seconds that a stage takes beyond its device's work: the gaps between kernels, or the host that launches them."""
    gaps = kernels * stack.gap_s
    return max(gaps, kernels * stack.dispatch_s - device_s)


def step_time(spec: ModelSpec, layout: Layout, machine: Machine) -> StepTime:
    """Seconds of one optimizer step by part.

    A pipeline of p stages and v virtual stages takes m + (p - 1) / v times as long as its slowest stage needs for one
    micro-batch (Narayanan et al. 2021, section 2.2); the head makes the last stage slower.
    """
    c, stack = machine.constants, machine.stack
    micro_batches = layout.micro_batches
    layers, kernels = 0, 0
    sums = dict.fromkeys(("matmul", "attention", "pointwise", "recompute", "tp", "cp", "ep"), 0.0)
    for expert, keys, count in layer_kinds(spec, layout.seq_len):
        t = layer_time(
            spec, expert, keys, layout.tp, layout.cp, layout.ep, layout.micro_batch, layout.seq_len, layout.dtype, machine
        )
        full = layout.recompute == "full"
        once_more = {"none": 0.0, "selective": t.attention[0], "full": t.device(0)}[layout.recompute]
        if layout.recompute == "selective" and stack.fused_attention:
            once_more = stack.products_again * t.matmul[0] + t.pointwise[0]
        sums["matmul"] += count * sum(t.matmul)
        sums["attention"] += count * sum(t.attention)
        sums["pointwise"] += count * sum(t.pointwise)
        sums["recompute"] += count * once_more
        for name, way in (("tp", t.tensor_parallel), ("cp", t.context_parallel), ("ep", t.expert_parallel)):
            sums[name] += count * (sum(way) + way[0] * full)
        kernels += count * (sum(t.kernels) + t.kernels[0] * full)
        layers += count
    stage = math.ceil(layers / layout.pp) / layers
    per_stage = {name: value * stage for name, value in sums.items()}
    body, launches = sum(per_stage.values()), kernels * stage
    head = sum(head_time(spec, layout.tp, layout.cp, layout.micro_batch, layout.seq_len, machine))
    middle = body + _waiting_s(body, launches, stack)  # a stage without the head
    launch = _waiting_s(body + head, launches + KERNELS_HEAD, stack)

    hop = 0.0
    if layout.pp > 1:
        sent = 2.0 * layout.micro_batch * layout.seq_len / layout.cp * spec.dim / (layout.tp if stack.sequence_parallel else 1)
        each = point_to_point_s(sent, layout.tp * layout.replicas, machine) + KERNELS_COLLECTIVE * stack.dispatch_s
        hop = 2 * layout.virtual_stages * each * (1 - stack.hidden_pp)
    slots = (layout.pp - 1) / layout.virtual_stages
    bubble = slots * (middle + hop)
    work = {name: micro_batches * value for name, value in {**per_stage, "launch": launch}.items()}

    dense, routed = (weights / layout.pp for weights in gpu_weights(spec, layout.tp, layout.ep))
    compute = micro_batches * middle
    data_parallel = _data_parallel_s(spec, layout, machine, dense, routed, compute)
    ranks = (layout.shard or layout.replicas) if layout.zero >= 1 else 1
    held = dense / ranks + routed / max(1, ranks // layout.ep)
    optimizer = held * stack.optimizer_bytes / machine.memory_bytes_per_s + stack.step_s
    partial = StepTime(
        matmul_s=work["matmul"],
        attention_s=work["attention"],
        pointwise_s=work["pointwise"],
        recompute_s=work["recompute"],
        launch_s=work["launch"],
        tensor_parallel_s=work["tp"],
        context_parallel_s=work["cp"],
        expert_parallel_s=work["ep"],
        head_s=micro_batches * head,
        pipeline_s=micro_batches * hop,
        bubble_s=bubble,
        data_parallel_s=data_parallel,
        optimizer_s=optimizer,
    )
    doublings = max(0.0, math.log2(layout.gpus / c.domain_gpus))
    return replace(partial, straggler_s=partial.total_s * stack.straggler * doublings)


@lru_cache(maxsize=10_000)
def gpu_weights(spec: ModelSpec, tp: int, ep: int) -> tuple[float, float]:
    """(weights that all data parallel ranks share, weights of routed experts) that one GPU would hold without a pipeline."""
    experts = spec.n_expert_layers * spec.n_experts * 3 * spec.dim * spec.expert_ffn_dim
    return (spec.parameters().total - experts) / tp, experts / tp / ep


def _data_parallel_s(spec: ModelSpec, layout: Layout, machine: Machine, dense: float, routed: float, compute_s: float) -> float:
    """Seconds of gradient and parameter traffic that compute does not hide."""
    stack = machine.stack
    if layout.replicas <= 1:
        return 0.0
    ranks = (layout.shard or layout.replicas) // (machine.buildings if not layout.shard else 1)

    def ring(bytes_each: float) -> float:
        alone = ring_s(bytes_each * dense, ranks, layout.tp, machine)
        return alone + ring_s(bytes_each * routed, max(1, ranks // layout.ep), layout.tp * layout.ep, machine)

    reduce, gather = ring(stack.gradient_bytes), ring(2.0)
    if layout.zero == 0:
        seconds = 2 * reduce
    elif layout.zero < 3:
        seconds = reduce + gather
    else:
        latency = ring_s(0.0, ranks, layout.tp, machine) * (spec.n_layers / layout.pp - 1)
        seconds = layout.micro_batches * (reduce + 2 * gather + 3 * latency)
    if layout.shard and layout.shard < layout.replicas:
        owned = stack.gradient_bytes * (dense + routed) / layout.shard
        seconds += 2 * ring_s(owned, layout.replicas // layout.shard, layout.tp * layout.shard, machine)
    if machine.buildings > 1:
        others = (machine.buildings - 1) / machine.buildings
        owned = (dense / ranks + routed / max(1, ranks // layout.ep)) * (stack.gradient_bytes + 2.0)
        seconds += owned * others / (machine.between_gb_per_s * 1e9)
    behind = compute_s if layout.zero == 3 else compute_s * 0.6 / layout.micro_batches
    return seconds - min(stack.hidden_dp * seconds, behind)
