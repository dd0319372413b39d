"""A figure of the plan as its formula, then with the numbers put in."""

import math

from tenfold.plan.kernels import point_to_point_s, ring_s
from tenfold.plan.plan import Plan
from tenfold.plan.step_time import gpu_weights
from tenfold.plan.workload import GIB
from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.units import si

NAMES = ("step_time", "memory", "days", "mfu", "layout", "shape")


def explain(plan: Plan, name: str) -> list[str]:
    """Lines that explain `name` (one of `NAMES`). Raises TenfoldError with the nearest where it is unknown."""
    if name not in NAMES:
        raise TenfoldError(f"There is nothing to explain called {name!r}{nearest(name, NAMES)}: name {', '.join(NAMES)}.")
    return {"step_time": _step_time, "memory": _memory, "days": _days, "mfu": _mfu, "layout": _layout, "shape": _shape}[name](plan)


def _step_time(plan: Plan) -> list[str]:
    w, m = plan.workload, plan.machine
    lay, t, c, spec = w.layout, w.step_time, plan.machine.constants, w.spec
    layers, micro = math.ceil(spec.n_layers / lay.pp), lay.micro_batches
    dense, routed = (x / lay.pp for x in gpu_weights(spec, lay.tp, lay.ep))
    tokens = lay.micro_batch * lay.seq_len // lay.cp
    peak = m.accelerator.peak_flops(lay.dtype)
    message = 2.0 * tokens * spec.dim
    lines = [
        f"step = sum of the parts below = {t.total_s:.4g} s for {si(lay.tokens_per_step)} tokens",
        f"micro-batches = {lay.global_batch} / (DP {lay.dp} x {lay.micro_batch}) = {micro}; layers a stage = {layers}; "
        f"tokens a micro-batch and GPU = {tokens}",
        f"matmul = micro-batches x layers x products, each max(waves x tile / rate, bytes / bandwidth) + "
        f"{c.kernel_s * 1e6:.1f} us; "
        f"rate = {peak / 1e12:.0f} TFLOP/s x {c.matmul_efficiency:.3f} = {peak * c.matmul_efficiency / 1e12:.0f} TFLOP/s: "
        f"{t.matmul_s:.4g} s",
        f"attention = 4 x heads x queries x keys x head_dim / (peak x {c.attention_efficiency:.3f}), backward 2.5 times: "
        f"{t.attention_s:.4g} s",
        f"pointwise = bytes / ({m.accelerator.memory_gb_per_s:.0f} GB/s x {c.memory_efficiency:.2f}): {t.pointwise_s:.4g} s",
        f"recompute ({lay.recompute}): {t.recompute_s:.4g} s; output head: {t.head_s:.4g} s; host launches: {t.launch_s:.4g} s",
        f"tensor parallel = micro-batches x layers x 4 all-reduces of {message / 1e6:.1f} MB over {lay.tp}, each 2 x "
        f"{ring_s(message, lay.tp, 1, m) * 1e6:.0f} us: {t.tensor_parallel_s:.4g} s",
        f"context parallel: {t.context_parallel_s:.4g} s; expert parallel: {t.expert_parallel_s:.4g} s",
    ]
    if lay.pp > 1:
        hop = point_to_point_s(message, lay.tp * lay.replicas, m)
        lines.append(f"pipeline = micro-batches x 2 hops of {hop * 1e6:.0f} us, the hidden part off: {t.pipeline_s:.4g} s")
        lines.append(
            f"bubble = (PP - 1) / virtual stages x one micro-batch = {lay.pp - 1} / {lay.virtual_stages} x "
            f"{t.bubble_s * lay.virtual_stages / (lay.pp - 1):.4g} s: {t.bubble_s:.4g} s"
        )
    lines += [
        f"data parallel = gradients and weights of {si(dense + routed)} parameters over {lay.shard or lay.replicas} ranks at "
        f"{c.scaleout_gb_per_s * c.scaleout_efficiency:.1f} GB/s a GPU, hidden up to {m.stack.hidden_dp:.0%}: "
        f"{t.data_parallel_s:.4g} s",
        f"optimiser = {m.stack.optimiser_bytes:.0f} B a parameter held / bandwidth + {m.stack.step_s * 1e3:.1f} ms: "
        f"{t.optimiser_s:.4g} s",
        f"stragglers = {m.stack.straggler:.2%} of the step for each doubling beyond {c.domain_gpus} GPUs: {t.straggler_s:.4g} s",
        f"constants: {m.source}",
    ]
    return lines


def _memory(plan: Plan) -> list[str]:
    n, lay = plan.workload.memory, plan.workload.layout
    weights = sum(gpu_weights(plan.workload.spec, lay.tp, lay.ep)) / lay.pp
    return [
        f"weights on a GPU before sharding = {si(weights)} (TP {lay.tp}, PP {lay.pp}, EP {lay.ep}); ZeRO-{lay.zero} over "
        f"{lay.shard or lay.replicas} ranks",
        f"parameters 2 B each: {n.parameters_gib:.2f} GiB; gradients: {n.gradients_gib:.2f} GiB; optimiser 12 B each: "
        f"{n.optimiser_gib:.2f} GiB",
        f"activations (recompute {lay.recompute}, up to {min(lay.micro_batches, lay.pp)} micro-batches in flight): "
        f"{n.activations_gib:.2f} GiB",
        f"buffers: {n.buffers_gib:.2f} GiB",
        f"sum {n.total_gib:.2f} of {n.capacity_gib:.2f} GiB ({plan.workload.accelerator.memory_gb * 1e9 / GIB:.1f} less the "
        f"driver's share)",
    ]


def _days(plan: Plan) -> list[str]:
    w = plan.workload
    return [
        f"days = tokens / tokens a step x step / 86400 = {si(w.tokens)} / {si(w.layout.tokens_per_step)} x {w.step_s:.4g} s "
        f"/ 86400 "
        f"= {w.days:.4g}",
        "Failures come on top (see the plan's wall-clock days).",
    ]


def _mfu(plan: Plan) -> list[str]:
    w = plan.workload
    per_token = w.spec.train_flops_per_token(w.layout.seq_len)
    peak = w.accelerator.peak_flops(w.layout.dtype)
    return [
        f"MFU = tokens a step x FLOPs a token / (step x GPUs x peak) = {si(w.layout.tokens_per_step)} x {per_token:.4g} / "
        f"({w.step_s:.4g} s x {w.gpus} x {peak:.4g}) = {w.mfu:.4f}; causal attention is counted as half"
    ]


def _layout(plan: Plan) -> list[str]:
    lines = [f"best: {plan.workload.layout.words()}"]
    lines += [f"{row['layout']}: {row['slower_pct']:.1f} % slower, {row['reason']}" for row in plan.alternatives]
    return [*lines, plan.search.second_wins_if]


def _shape(plan: Plan) -> list[str]:
    p = plan.workload.spec.parameters()
    s = plan.workload.spec
    return [*plan.notes[:2], f"{s.n_layers} layers of width {s.dim}, {s.n_heads} heads ({s.n_kv_heads} KV), feed-forward "
    f"{s.ffn_dim}"
            + (f", {s.n_experts} experts of {s.expert_ffn_dim}, {s.experts_per_token} active, {s.n_shared_experts} "
            f"shared" if s.n_experts else ""),
            f"parameters: {si(p.total)} in all, {si(p.active)} active"]  # fmt: skip
