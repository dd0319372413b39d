"""`--explain`: a result of the plan as its formula, with the plan's numbers in it."""

import math
from collections.abc import Callable

from tenfold.plan.costs.consequences import SIMULATED_RUNS, Consequences, consequences
from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.plan import Plan
from tenfold.plan.ranges import Range
from tenfold.plan.workload.kernels import point_to_point_s, ring_s
from tenfold.plan.workload.step_time import micro_batches, stage_weights
from tenfold.plan.workload.workload import GIB
from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.units import duration, si

NOT_OF_SHAPE = ("Budget:", "Days:", "GPUs:")  # beginnings of the notes that stand before the reasons of the shape


def explain(plan: Plan, name: str, around: SiteOptions | None = None) -> list[str]:
    """Lines that explain `name`, one of `NAMES`. Raises TenfoldError, with the nearest name, for another."""
    if name in OF_PLAN:
        return OF_PLAN[name](plan)
    if name in OF_RUN:
        return OF_RUN[name](plan, consequences(plan.workload, around))
    raise TenfoldError(f"There is nothing to explain called {name!r}{nearest(name, NAMES)}: name {', '.join(NAMES)}.")


def _step_time(plan: Plan) -> list[str]:
    t = plan.workload.step_time
    return [
        f"step = sum of the parts below = {t.total_s:.4g} s for {si(plan.workload.layout.tokens_per_step)} tokens",
        *_computing(plan),
        *_tensor_and_pipeline(plan),
        *_once_a_step(plan),
        f"constants: {plan.machine.source}",
    ]


def _computing(plan: Plan) -> list[str]:
    """Lines on the computation of a GPU in a step."""
    w, m = plan.workload, plan.machine
    lay, t, c = w.layout, w.step_time, m.constants
    peak, rows = m.accelerator.peak_flops(lay.dtype), lay.rows_together
    return [
        f"micro-batches = {lay.global_batch} / (DP {lay.dp} x {rows}) = {micro_batches(lay, m.stack)}; layers per stage = "
        f"{math.ceil(w.spec.n_layers / lay.pp)}; tokens per micro-batch and GPU = {rows * lay.seq_len // lay.cp}",
        f"matmul = micro-batches x layers x products, each max(waves x tile / rate, bytes / bandwidth) + "
        f"{c.kernel_s * 1e6:.1f} us; "
        f"rate = {peak / 1e12:.0f} TFLOP/s x {c.matmul_efficiency:.3f} = {peak * c.matmul_efficiency / 1e12:.0f} TFLOP/s: "
        f"{t.matmul_s:.4g} s",
        f"attention = 4 x heads x queries x keys x head_dim / (peak x {c.attention_efficiency:.3f}), backward 2.5 times: "
        f"{t.attention_s:.4g} s",
        f"pointwise = bytes / ({m.accelerator.memory_gb_per_s:.0f} GB/s x {c.memory_efficiency:.2f}): {t.pointwise_s:.4g} s",
        f"recompute ({lay.activation_checkpointing}): {t.recompute_s:.4g} s; output head: {t.head_s:.4g} s; host launches: "
        f"{t.launch_s:.4g} s",
    ]


def _tensor_and_pipeline(plan: Plan) -> list[str]:
    """Lines on the communication within a replica."""
    lay, t, m = plan.workload.layout, plan.workload.step_time, plan.machine
    message = 2.0 * (lay.rows_together * lay.seq_len // lay.cp) * plan.workload.spec.dim
    lines = [
        f"tensor parallel = micro-batches x layers x 4 all-reduces of {message / 1e6:.1f} MB over {lay.tp}, each 2 x "
        f"{ring_s(message, lay.tp, 1, m) * 1e6:.0f} us: {t.tensor_parallel_s:.4g} s",
        f"context parallel: {t.context_parallel_s:.4g} s; expert parallel: {t.expert_parallel_s:.4g} s",
    ]
    if lay.pp > 1:
        hop, virtual = point_to_point_s(message, lay.tp * lay.replicas, m), lay.stages_per_rank
        lines.append(
            f"pipeline = micro-batches x 2 hops of {hop * 1e6:.0f} us, less the part hidden behind compute: {t.pipeline_s:.4g} s"
        )
        lines.append(
            f"bubble = (PP - 1) / virtual stages x one micro-batch = {lay.pp - 1} / {virtual} x "
            f"{t.bubble_s * virtual / (lay.pp - 1):.4g} s: {t.bubble_s:.4g} s"
        )
    return lines


def _once_a_step(plan: Plan) -> list[str]:
    """Lines on the parts that a step has once: data parallel traffic, the optimizer, stragglers."""
    lay, t, m, c = plan.workload.layout, plan.workload.step_time, plan.machine, plan.machine.constants
    buildings = f", {m.buildings} buildings with {m.between_gb_per_s:g} GB/s per GPU between them" if m.buildings > 1 else ""
    return [
        f"data parallel = gradients and weights of {si(sum(stage_weights(plan.workload.spec, lay)))} parameters over {lay.shards} "
        f"ranks at {c.scaleout_gb_per_s * c.scaleout_efficiency:.1f} GB/s per GPU, hidden up to {m.stack.hidden_dp:.0%}: "
        f"{t.data_parallel_s:.4g} s{buildings}",
        f"optimizer = {m.stack.optimizer_bytes:.0f} B per parameter held / memory bandwidth + {m.stack.step_s * 1e3:.1f} ms: "
        f"{t.optimizer_s:.4g} s",
        f"stragglers = {m.stack.straggler:.2%} of the step for each doubling beyond {c.domain_gpus} GPUs: {t.straggler_s:.4g} s",
    ]


def _memory(plan: Plan) -> list[str]:
    n, lay = plan.workload.memory, plan.workload.layout
    weights = sum(stage_weights(plan.workload.spec, lay))
    held = plan.machine.stack.weight_bytes
    return [
        f"weights on a GPU before sharding = {si(weights)} (TP {lay.tp}, PP {lay.pp}, EP {lay.ep}); ZeRO-{lay.zero} over "
        f"{lay.shards} ranks",
        f"parameters {held:g} B each: {n.parameters_gib:.2f} GiB; gradients: {n.gradients_gib:.2f} GiB; optimizer "
        f"{8 if held >= 4 else 12} B each: {n.optimizer_gib:.2f} GiB",
        f"activations (recompute {lay.activation_checkpointing}, up to {min(lay.micro_batches, lay.pp)} micro-batches in flight): "
        f"{n.activations_gib:.2f} GiB",
        f"buffers: {n.buffers_gib:.2f} GiB",
        f"sum {n.total_gib:.2f} of {n.capacity_gib:.2f} GiB ({plan.workload.accelerator.memory_gb * 1e9 / GIB:.1f} less the "
        f"driver's share)",
    ]


def _days(plan: Plan) -> list[str]:
    w = plan.workload
    return [
        f"days = tokens / tokens per step x step / 86400 = {si(w.tokens)} / {si(w.layout.tokens_per_step)} x {w.step_s:.4g} s "
        f"/ 86400 "
        f"= {w.days:.4g}",
        "Failures and the time beside the steps (evaluation, slow starts, repeated stages) come on top: see --explain failures.",
    ]


def _mfu(plan: Plan) -> list[str]:
    w = plan.workload
    per_token = w.spec.train_flops_per_token(w.layout.seq_len)
    peak = w.accelerator.peak_flops(w.layout.dtype)
    return [
        f"MFU = tokens per step x FLOPs per token / (step x GPUs x peak) = {si(w.layout.tokens_per_step)} x {per_token:.4g} / "
        f"({w.step_s:.4g} s x {w.gpus} x {peak:.4g}) = {w.mfu:.4f}; causal attention is counted as half"
    ]


def _layout(plan: Plan) -> list[str]:
    lines = [f"best: {plan.workload.layout.words()}"]
    lines += [f"{row['layout']}: {row['slower_pct']:.1f} % slower, {row['reason']}" for row in plan.alternatives]
    return [*lines, plan.search.second_wins_if]


def _shape(plan: Plan) -> list[str]:
    p = plan.workload.spec.parameters()
    s = plan.workload.spec
    reasons = [note for note in plan.notes if not note.startswith(NOT_OF_SHAPE)]
    return [*reasons[:2], f"{s.n_layers} layers of width {s.dim}, {s.n_heads} heads ({s.n_kv_heads} KV), feed-forward "
    f"{s.ffn_dim}"
            + (f", {s.n_experts} experts of {s.expert_ffn_dim}, {s.experts_per_token} active, {s.n_shared_experts} "
            f"shared" if s.n_experts else ""),
            f"parameters: {si(p.total)} in all, {si(p.active)} active"]  # fmt: skip


def _said(r: Range, scale: float = 1.0, unit: str = "") -> str:
    """`1.2 (0.9 to 1.6) kW`."""
    low, mid, high = (f"{scale * v:,.4g}" for v in (r.low, r.mid, r.high))
    return f"{mid} ({low} to {high})" + (f" {unit}" if unit else "")


def _failures(plan: Plan, after: Consequences) -> list[str]:
    f = after.failures
    components = ", ".join(f"{name} {rate:.3g}" for name, rate in sorted(f.by_component_per_day.items(), key=lambda x: -x[1])[:5])
    shares = ", ".join(f"{name} {share:.2%}" for name, share in f.shares.items())
    return [
        f"interruptions per day = nodes x rate per node-day = {f.n_nodes:,} x {_said(f.per_1000_node_days, 1e-3)}; "
        f"most by {components}",
        f"mean time to interruption = 24 h / that = {_said(f.mean_time_to_interruption_h, 1, 'h')}",
        f"checkpoint = 14 B per parameter = {si(f.checkpoint_bytes, 'B')}: stall {f.checkpoint_stall_s:.3g} s, safe in storage "
        f"after {f.checkpoint_write_s:.3g} s",
        f"interval that maximises the expected effective time = {duration(f.checkpoint_interval_s)} (Young: sqrt(2 x stall x "
        f"mean time) = {duration(f.young_interval_s)}, Daly {duration(f.daly_interval_s)})",
        f"recovery = detection {duration(f.detection_s)} + restart {duration(f.restart_s)}",
        f"effective time = interval / expected time from one safe checkpoint to the next = {_said(f.effective_share, 100, '%')}; "
        f"in {SIMULATED_RUNS} simulated runs {after.simulated_share.mid:.1%}; {shares}",
        f"wall-clock days = {plan.workload.days:.4g} x step error {_said(after.step_error)} x beside the steps "
        f"{_said(after.beside_steps)} / effective time = {_said(after.wall_days)}",
        f"spare nodes = enough to replace those in repair with a probability of 99 %: {f.spare_nodes}",
        f"rates: {f.source}",
    ]


def _power(plan: Plan, after: Consequences) -> list[str]:
    p, w = after.power, plan.workload
    return [
        f"board = TDP x its share while computing ({p.computing_share:.1%} of the time) and while waiting = "
        f"{_said(p.board_w, 1, 'W')} of {w.accelerator.tdp_w:.0f} W",
        f"IT = board + host {_said(p.host_w)} + network {_said(p.network_w)} = {_said(p.it_w, 1, 'W')} per accelerator",
        f"mean = accelerators x IT x PUE {_said(p.pue)} = {_said(p.mean_mw, 1, 'MW')}; "
        f"peak, with all boards at their peak at once: {_said(p.peak_mw, 1, 'MW')}",
        f"energy = mean x {_said(after.wall_days, 24, 'h')} = {_said(p.energy_mwh, 1, 'MWh')}",
        "of which " + ", ".join(f"{name} {part.mid:,.4g} MWh" for name, part in p.parts_mwh.items()),
    ]


def _cost(plan: Plan, after: Consequences) -> list[str]:
    c = after.cost
    parts = " + ".join(f"{name} {part.mid / 1e6:,.4g}" for name, part in c.own_parts_usd.items())
    return [
        f"accelerator-hours = (accelerators + spares) x wall-clock hours = {_said(c.gpu_hours)}",
        f"rent = accelerator-hours x {_said(c.rent_usd_per_gpu_hour)} USD = {_said(c.rent_usd, 1e-6, 'M USD')}",
        f"own = {_said(c.own_usd, 1e-6, 'M USD')} = {parts}",
        f"electricity = {_said(after.power.energy_mwh, 1, 'MWh')} x {_said(c.usd_per_kwh)} USD/kWh",
        f"prices: {c.source}{' (assumed)' if c.assumed else ''}",
    ]


def _carbon(plan: Plan, after: Consequences) -> list[str]:
    f, energy = after.footprint, _said(after.power.energy_mwh, 1, "MWh")
    return [
        f"by location = energy x grid = {energy} x {_said(f.kgco2_per_kwh)} kg/kWh = {_said(f.location_tco2e, 1, 't CO2e')}",
        f"by contract = (1 - {f.clean_share:g} matched) x by location x residual mix = {_said(f.market_tco2e, 1, 't CO2e')}",
        f"making the machines = carbon per machine x hours of the run / years of use = {_said(f.embodied_tco2e, 1, 't CO2e')}",
        f"sources: {f.source}",
    ]


def _water(plan: Plan, after: Consequences) -> list[str]:
    f, p = after.footprint, after.power
    return [
        f"on site = IT energy x WUE = {_said(p.it_energy_mwh, 1, 'MWh')} x {_said(f.wue_l_per_kwh)} l/kWh = "
        f"{_said(f.water_on_site_m3, 1, 'm3')}",
        f"at power stations = energy x evaporation by fuel = {_said(p.energy_mwh, 1, 'MWh')} x "
        f"{_said(f.off_site_l_per_kwh)} l/kWh = {_said(f.water_off_site_m3, 1, 'm3')}",
        f"sources: {f.source}",
    ]


OF_PLAN: dict[str, Callable[[Plan], list[str]]] = {
    "step_time": _step_time, "memory": _memory, "days": _days, "mfu": _mfu, "layout": _layout, "shape": _shape,
}  # fmt: skip
OF_RUN: dict[str, Callable[[Plan, Consequences], list[str]]] = {
    "failures": _failures, "power": _power, "cost": _cost, "carbon": _carbon, "water": _water,
}  # fmt: skip
NAMES = (*OF_PLAN, *OF_RUN)
