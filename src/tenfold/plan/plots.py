"""Plots of a plan, each drawn from the plan's JSON document and returned as SVG."""

import io
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tenfold.plan.costs.failures import Failures, simulate
from tenfold.plan.document import Document
from tenfold.plan.facts import facts
from tenfold.plan.ranges import Range
from tenfold.spec.layout import stage_layers

INK, QUIET, ACCENT, MARK = "#334155", "#94a3b8", "#2563eb", "#dc2626"
COLOURS = [
    "#2563eb",
    "#0d9488",
    "#d97706",
    "#7c3aed",
    "#dc2626",
    "#64748b",
    "#65a30d",
    "#db2777",
    "#0891b2",
    "#a16207",
    "#9f1239",
    "#166534",
    "#c084fc",
    "#1e293b",
]  # one for each part of a step
MOST_ROWS, MOST_COLUMNS = 16, 32  # of the layout map; further rows and columns are drawn as "…"


def as_svg(figure: Figure) -> str:
    """The figure as an SVG element to embed in a page, without the XML declaration; text is kept as text, not as paths."""
    out = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tenfold"}):
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def _bars(axes: Axes, parts: dict[str, float], unit: str, height: float = 0.5) -> None:
    """One stacked bar, its parts labelled with their share where there is room, and in the legend with their value."""
    whole, at = sum(parts.values()), 0.0
    for i, (name, value) in enumerate(parts.items()):
        share = value / whole
        colour, label = COLOURS[i % len(COLOURS)], f"{name} {value:.3g} {unit}"
        axes.barh(0, value, height, left=at, color=colour, label=label, ec="white", lw=0.6)
        if share > 0.06:
            axes.text(at + value / 2, 0, f"{100 * share:.0f} %", ha="center", va="center", color="white", fontsize=8)
        at += value
    axes.set(yticks=[], ylim=(-0.5, 0.5))
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.legend(ncols=5, fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.3))


def draw_memory(plan: Document) -> str:
    """The fullest GPU's memory by part, and its capacity."""
    memory = plan["memory"]
    parts = {n: memory[f"{n}_gib"] for n in ("parameters", "gradients", "optimizer", "activations", "buffers")}
    figure, axes = plt.subplots(figsize=(9, 1.1))
    _bars(axes, parts, "GiB")
    axes.axvline(memory["capacity_gib"], color=INK, lw=1.5)
    axes.text(memory["capacity_gib"], 0.38, f" {memory['capacity_gib']:.0f} GiB", color=INK, fontsize=8, ha="right")
    axes.set_title("Memory of the fullest GPU (GiB)", fontsize=9, loc="left")
    return as_svg(figure)


def draw_step(plan: Document) -> str:
    """One training step: seconds by part."""
    parts = {name.replace("_", " "): s for name, s in plan["step"]["parts_s"].items() if s > 0}
    figure, axes = plt.subplots(figsize=(9, 1.1))
    _bars(axes, parts, "s")
    axes.set_title(f"One step: {plan['step']['step_s']:.3g} s", fontsize=9, loc="left")
    return as_svg(figure)


def draw_layout(plan: Document) -> str:
    """Left: one replica, a row per pipeline stage, a cell per GPU. Right: all replicas."""
    layout, model = plan["layout"], plan["model"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=[3, 1], constrained_layout=True)
    _replica(left, layout, model)
    _replicas(right, layout, plan["machine"])
    return as_svg(figure)


def _shown(n: int, most: int) -> list[int | None]:
    """0 to n - 1; where n exceeds `most`, the first of them, a gap (`None`), and the last."""
    return list(range(n)) if n <= most else [*range(most - 2), None, n - 1]


def _replica(axes: Axes, layout: dict[str, Any], model: dict[str, Any]) -> None:
    tp, cp, pp, dp = layout["tp"], layout["cp"], layout["pp"], layout["dp"]
    sharded = tp * cp * pp == 1  # one GPU computes a whole replica: show who holds which shard instead
    width = min(dp, 8) if sharded else tp * cp
    columns, stages = _shown(width, MOST_COLUMNS), _shown(pp, MOST_ROWS)
    for y, stage in enumerate(stages):
        for x, column in enumerate(columns):
            if stage is None or column is None:
                axes.text(x + 0.5, y + 0.5, "…", ha="center", va="center", color=INK, fontsize=8)
                continue
            colour = COLOURS[stage % len(COLOURS)]
            axes.add_patch(Rectangle((x + 0.04, y + 0.06), 0.92, 0.88, fc=colour, alpha=0.55 + 0.4 * (column % tp) / tp, ec="none"))
            gpu = column if sharded else (stage * dp * cp + column // tp) * tp + column % tp
            axes.text(x + 0.5, y + 0.5, str(gpu), ha="center", va="center", fontsize=_fits(str(gpu), len(columns)), color="white")
        if stage is not None:
            axes.text(-0.15, y + 0.5, _holds(stage, layout, model["n_layers"]), ha="right", va="center", fontsize=7, color=INK)
    axes.set(xlim=(0, len(columns)), ylim=(len(stages), 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if sharded:
        part = f"each with 1/{layout['shards']} of the state" if layout["zero"] else "each with all of it"
        title = f"First {width} of {dp} GPUs, {part}"
    else:
        title = f"One replica: {pp} stages x {cp} context x {tp} tensor ranks (number: GPU)"
    if model["n_experts"]:
        title += f", {model['n_experts'] // layout['ep']} of {model['n_experts']} experts a GPU"
    axes.set_title(title, fontsize=9, loc="left")


def _fits(text: str, columns: int) -> float:
    """The font size in points at which `text` fits a cell of a map of so many columns, about 340 points wide."""
    return min(7.0, 340 / columns / (0.65 * max(2, len(text))))


def _holds(rank: int, layout: dict[str, Any], n_layers: int) -> str:
    """A label of one row of the map: the layers that its pipeline rank holds."""
    pp, virtual = layout["pp"], layout["stages_per_rank"]
    if pp == 1:
        return "all layers"
    stages = stage_layers(n_layers, pp * virtual)[rank::pp]
    text = f"rank {rank}: {virtual} stages, {sum(map(len, stages))} layers"
    if virtual == 1:
        text = f"stage {rank}: layers {stages[0].start} to {stages[0].stop - 1}"
    return text + {0: ", embedding", pp - 1: ", head"}.get(rank, "")


def _replicas(axes: Axes, layout: dict[str, Any], machine: dict[str, Any]) -> None:
    dp = layout["dp"]
    side = min(math.ceil(math.sqrt(dp)), 40)
    shown = min(dp, side * side)
    x, y = [i % side for i in range(shown)], [i // side for i in range(shown)]
    axes.scatter(x, y, marker="s", s=max(2, 1500 / side**2), color=ACCENT)
    axes.invert_yaxis()
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.margins(0.1)
    axes.spines[:].set_visible(False)
    more = f" ({shown:,} drawn)" if shown < dp else ""
    axes.set_title(f"{dp:,} replicas{more}, {machine['gpus']:,} GPUs", fontsize=9)


def draw_split(plan: Document) -> str:
    """Two panels with ranges: the cost of owning by part beside the rent, and energy by part."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), constrained_layout=True)
    money = {**plan["cost"]["own_parts_usd"], "owned, in all": plan["cost"]["own_usd"], "rented, in all": plan["cost"]["rent_usd"]}
    _ranges(left, {name: _scaled(r, 1e-6) for name, r in money.items()}, "million USD")
    energy = {**plan["power"]["parts_mwh"], "in all": plan["power"]["energy_mwh"]}
    _ranges(right, {name: _scaled(r, 1e-3) for name, r in energy.items()}, "GWh")
    left.set_title(f"Cost: electricity at $ {plan['cost']['usd_per_kwh']['mid']:.3f} per kWh", fontsize=9, loc="left")
    mean, peak = (plan["power"][name]["mid"] for name in ("mean_mw", "peak_mw"))
    right.set_title(f"Energy: mean {mean:.3g} MW, peak {peak:.3g} MW", fontsize=9, loc="left")
    return as_svg(figure)


def _scaled(r: dict[str, float], by: float) -> Range:
    return Range(r["low"] * by, r["mid"] * by, r["high"] * by)


def _ranges(axes: Axes, parts: dict[str, Range], unit: str) -> None:
    for i, (name, r) in enumerate(parts.items()):
        axes.barh(i, r.mid, 0.6, color=INK if name.endswith("in all") else COLOURS[i % len(COLOURS)])
        axes.errorbar(r.mid, i, xerr=[[r.mid - r.low], [r.high - r.mid]], color=QUIET, capsize=2, lw=1)
    axes.set(yticks=range(len(parts)), xlabel=unit, xlim=(0, None))
    axes.set_yticklabels(list(parts), fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.invert_yaxis()
    axes.spines[["right", "top"]].set_visible(False)


def draw_failures(plan: Document) -> str:
    """Two panels: cumulative interruptions of one simulated run by component, and the lost shares of wall-clock time."""
    kept = plan["failures"]
    ranges = {k: Range(**v) for k, v in kept.items() if isinstance(v, dict) and set(v) == {"low", "mid", "high"}}
    known = Failures(**{f.name: ranges.get(f.name, kept[f.name]) for f in fields(Failures)})
    run = simulate(known, plan["time"]["training_days"] * 86_400)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), width_ratios=[2, 1], constrained_layout=True)
    often = [name for name, _ in Counter(name for _, name in run.interruptions).most_common(5)]
    groups = [*often, "other"]
    days = [hours / 24 for hours, _ in run.interruptions]
    series = [[1.0 if (name if name in often else "other") == group else 0.0 for _, name in run.interruptions] for group in groups]
    if days:
        totals = [[sum(s[: i + 1]) for i in _thinned(len(s))] for s in series]
        left.stackplot([days[i] for i in _thinned(len(days))], totals, labels=groups, colors=COLOURS, alpha=0.85)
        left.legend(fontsize=7, frameon=False, loc="upper left")
    wall = run.wall_s / 86_400
    left.plot([0, wall], [0, sum(known.by_component_per_day.values()) * wall], color=INK, lw=1, ls="--")
    left.set(xlabel="days since the start", ylabel="interruptions so far", xlim=(0, wall), ylim=(0, None))
    left.set_title(f"{len(run.interruptions):,} interruptions in {wall:.1f} days (dashed: expected)", fontsize=9, loc="left")
    lost = {name: 100 * share for name, share in kept["shares"].items() if name != "training"}
    right.barh(list(lost), list(lost.values()), 0.6, color=[COLOURS[2], COLOURS[4], COLOURS[5]])
    right.invert_yaxis()
    right.set(xlabel="% of wall-clock time")
    right.set_title(f"Effective {100 * kept['effective_share']['mid']:.1f} %", fontsize=9, loc="left")
    for axes in (left, right):
        axes.spines[["right", "top"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return as_svg(figure)


def _thinned(n: int, most: int = 200) -> list[int]:
    """At most `most` evenly spaced indices below n, the last included."""
    return sorted({round(i * (n - 1) / max(1, min(n, most) - 1)) for i in range(min(n, most))})


def draw_compute(plan: Document) -> str:
    """Published models and this plan by training compute."""
    runs = sorted(((name, row["flops"]) for name, row in facts("published_runs")["runs"].items()), key=lambda row: row[1])
    runs = sorted([*runs, ("this plan", plan["model"]["flops"])], key=lambda row: row[1])
    figure, axes = plt.subplots(figsize=(9, 3.6), constrained_layout=True)
    for i, (name, flops) in enumerate(runs):
        mine = name == "this plan"
        axes.plot([runs[0][1] / 3, flops], [i, i], color=QUIET, lw=0.6)
        axes.plot(flops, i, "o", color=MARK if mine else ACCENT, ms=8 if mine else 5)
        axes.text(flops * 1.15, i, f"{flops:.2g}", va="center", fontsize=7, color=INK)
    axes.set(xscale="log", xlabel="training compute (FLOPs)", yticks=range(len(runs)), xlim=(runs[0][1] / 3, runs[-1][1] * 4))
    axes.set_yticklabels([name for name, _ in runs], fontsize=8)
    axes.spines[["right", "top"]].set_visible(False)
    return as_svg(figure)


ALL: dict[str, Callable[[Document], str]] = {
    "compute": draw_compute,
    "layout": draw_layout,
    "memory": draw_memory,
    "step": draw_step,
    "split": draw_split,
    "failures": draw_failures,
}
