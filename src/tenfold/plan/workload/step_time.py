"""The time of one optimizer step, by part, from the shape of the model, the layout and the machine."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from tenfold.plan.workload.kernels import point_to_point_s, ring_s
from tenfold.plan.workload.layer_time import KERNELS_COLLECTIVE, KERNELS_HEAD, LayerKind, Part, head_time, layer_time
from tenfold.plan.workload.machine import Machine, Stack
from tenfold.plan.workload.workload import StepTime
from tenfold.spec.layout import Layout
from tenfold.spec.model import ModelSpec


@lru_cache(maxsize=1000)
def layer_kinds(spec: ModelSpec, seq_len: int) -> tuple[tuple[LayerKind, int], ...]:
    """The kinds of layers that differ in time, and the number of each."""
    kinds: dict[LayerKind, int] = {}
    for layer in range(spec.n_layers):
        kind = LayerKind(spec.has_experts(layer), spec.attended(seq_len, layer))
        kinds[kind] = kinds.get(kind, 0) + 1
    return tuple(kinds.items())


def micro_batches(layout: Layout, stack: Stack) -> int:
    """Micro-batches of a step; Tenfold's trainer pads them to a multiple of the pipeline's ranks."""
    fill = layout.pp if stack.own_trainer else 1
    return math.ceil(layout.micro_batches / fill) * fill


@dataclass(frozen=True)
class _Pass:
    """Seconds of one micro-batch in the stage with the most layers, forward and backward, and the kernels launched in it."""

    matmul: float
    attention: float
    pointwise: float
    recompute: float
    tp: float
    cp: float
    ep: float
    kernels: float

    @property
    def device_s(self) -> float:
        return self.matmul + self.attention + self.pointwise + self.recompute + self.tp + self.cp + self.ep


def _stage_pass(spec: ModelSpec, layout: Layout, machine: Machine) -> _Pass:
    part, stack, mode = Part.of(layout), machine.stack, layout.activation_checkpointing
    sums, full = [0.0] * 8, mode == "full"
    for kind, count in layer_kinds(spec, layout.seq_len):
        t = layer_time(spec, kind, part, machine)
        again = {"none": 0.0, "selective": t.attention.forward, "full": t.forward_s}[mode]
        if mode == "selective" and stack.fused_attention:
            again = stack.products_again * t.matmul.forward + t.pointwise.forward
        device = (sum(t.matmul), sum(t.attention), sum(t.pointwise), again)
        sent = (sum(way) + way.forward * full for way in (t.tensor_parallel, t.context_parallel, t.expert_parallel))
        row = (*device, *sent, sum(t.kernels) + t.kernels[0] * full)
        sums = [total + count * value for total, value in zip(sums, row, strict=True)]
    stage = math.ceil(spec.n_layers / layout.pp) / spec.n_layers
    return _Pass(*(value * stage for value in sums))


def pass_s(spec: ModelSpec, layout: Layout, machine: Machine) -> float:
    """Seconds on the device of one micro-batch in the stage with the most layers, forward and backward."""
    return _stage_pass(spec, layout, machine).device_s


def _waiting_s(device_s: float, kernels: float, stack: Stack) -> float:
    """Seconds that a stage takes beyond the device's work, because of gaps between kernels or a host that launches too slowly."""
    gaps = kernels * stack.gap_s
    return max(gaps, kernels * stack.dispatch_s - device_s)


def step_time(spec: ModelSpec, layout: Layout, machine: Machine) -> StepTime:
    """Seconds of one optimizer step by part.

    A pipeline of p stages and v virtual stages takes m + (p - 1) / v times as long as its slowest stage needs for one
    micro-batch (Narayanan et al. 2021, section 2.2); the head makes the last stage slower.
    """
    stack, parts = machine.stack, micro_batches(layout, machine.stack)
    one = _stage_pass(spec, layout, machine)
    head = head_time(spec, Part.of(layout), machine)
    body = one.device_s
    middle = body + _waiting_s(body, one.kernels, stack)  # a stage without the head
    hop = _hop_s(spec, layout, machine) if layout.pp > 1 else 0.0
    partial = StepTime(
        matmul_s=parts * one.matmul,
        attention_s=parts * one.attention,
        pointwise_s=parts * one.pointwise,
        recompute_s=parts * one.recompute,
        launch_s=parts * _waiting_s(body + head, one.kernels + KERNELS_HEAD, stack),
        tensor_parallel_s=parts * one.tp,
        context_parallel_s=parts * one.cp,
        expert_parallel_s=parts * one.ep,
        head_s=parts * head,
        pipeline_s=parts * hop,
        bubble_s=(layout.pp - 1) / layout.stages_per_rank * (middle + hop),
        data_parallel_s=_data_parallel_s(spec, layout, machine, parts * middle),
        optimizer_s=_optimizer_s(spec, layout, machine),
    )
    doublings = max(0.0, math.log2(layout.world / machine.constants.domain_gpus))
    return replace(partial, straggler_s=partial.total_s * stack.straggler * doublings)


def _hop_s(spec: ModelSpec, layout: Layout, machine: Machine) -> float:
    """Seconds to send the hidden states and gradients of a micro-batch to the next stages, less the part hidden by compute."""
    stack = machine.stack
    parts = layout.tp if stack.sequence_parallel else 1
    sent = 2.0 * layout.rows_together * layout.seq_len / layout.cp * spec.dim / parts
    each = point_to_point_s(sent, layout.tp * layout.replicas, machine) + KERNELS_COLLECTIVE * stack.dispatch_s
    return 2 * layout.stages_per_rank * each * (1 - stack.hidden_pp)


@lru_cache(maxsize=10_000)
def gpu_weights(spec: ModelSpec, tp: int, expert_parts: int) -> tuple[float, float]:
    """(weights without routed experts, weights of routed experts) on one GPU without a pipeline and without sharding.

    `expert_parts` is the number of parts that the experts of a layer are divided into: ep x etp.
    """
    experts = spec.n_expert_layers * spec.n_experts * 3 * spec.dim * spec.expert_ffn_dim
    return (spec.parameters().total - experts) / tp, experts / expert_parts


def stage_weights(spec: ModelSpec, layout: Layout) -> tuple[float, float]:
    """(weights without routed experts, weights of routed experts) on one GPU before sharding over data parallel ranks."""
    dense, experts = gpu_weights(spec, layout.tp, layout.ep * layout.etp)
    return dense / layout.pp, experts / layout.pp


def _optimizer_s(spec: ModelSpec, layout: Layout, machine: Machine) -> float:
    dense, experts = stage_weights(spec, layout)
    held = dense / layout.shards + experts / layout.expert_shards if layout.zero else dense + experts
    return held * machine.stack.optimizer_bytes / machine.memory_bytes_per_s + machine.stack.step_s


def _data_parallel_s(spec: ModelSpec, layout: Layout, machine: Machine, compute_s: float) -> float:
    """Seconds of gradient and weight traffic between data parallel ranks that compute does not hide."""
    stack, (dense, experts) = machine.stack, stage_weights(spec, layout)
    if layout.replicas <= 1:
        return 0.0
    inside = machine.buildings if layout.dp_replicate == 1 else 1  # a copy that spans several buildings is sharded within each
    ranks, expert_ranks = layout.shards // inside, max(1, layout.expert_shards // inside)

    def ring(bytes_each: float) -> float:
        alone = ring_s(bytes_each * dense, ranks, layout.tp, machine)
        return alone + ring_s(bytes_each * experts, expert_ranks, max(layout.tp, layout.ep * layout.etp), machine)

    reduce, gather = ring(stack.gradient_bytes), ring(2.0)
    once = layout.zero < 3 or (stack.own_trainer and layout.pp > 1)  # once per step, not for each micro-batch
    if layout.zero == 0:
        seconds = 2 * reduce
    elif once:
        seconds = reduce + gather
    else:
        latency = ring_s(0.0, ranks, layout.tp, machine) * (spec.n_layers / layout.pp - 1)
        seconds = layout.micro_batches * (reduce + 2 * gather + 3 * latency)
    if layout.dp_replicate > 1:
        owned = stack.gradient_bytes * (dense + experts) / layout.shards
        seconds += 2 * ring_s(owned, layout.dp_replicate, layout.tp * layout.shards, machine)
    if machine.buildings > 1:
        others = (machine.buildings - 1) / machine.buildings
        owned = (dense / ranks + experts / expert_ranks) * (stack.gradient_bytes + 2.0)
        seconds += owned * others / (machine.between_gb_per_s * 1e9)
    behind = compute_s if not once else compute_s * 0.6 / layout.micro_batches
    return seconds - min(stack.hidden_dp * seconds, behind)
