"""Plots of a climb and of a law, with matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation

from tenfold.scale.isoflop import minimum, rungs
from tenfold.scale.law import Law
from tenfold.scale.points import Point
from tenfold.spec.files import atomic_file

INK, ACCENT, MEASURED = "#334155", "#2563eb", "#dc2626"


def draw_climb(points: Sequence[Point], law: Law, forecast: dict[str, Any], result: dict[str, Any] | None, path: Path) -> None:
    """Two panels: the ladder's isoFLOP curves, and loss over compute with the law, the forecast and the measured loss.

    `result` is the end event of the run, or None.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), constrained_layout=True)
    _isoflops(left, points)
    _frontier(right, points, law, forecast, result)
    _save(figure, path)


def _isoflops(axes: Axes, points: Sequence[Point]) -> None:
    colours = plt.get_cmap("viridis")
    groups = rungs(points)
    for i, (budget, group) in enumerate(groups):
        colour = colours(0.85 * i / max(1, len(groups) - 1))
        ordered = sorted(group, key=lambda p: p.params)
        axes.plot([p.params for p in ordered], [p.loss for p in ordered], "o", color=colour, ms=4, label=f"{budget:.1e} FLOPs")
        if found := minimum(group):
            x = np.geomspace(ordered[0].params, ordered[-1].params, 60)
            axes.plot(x, found.curve(x), color=colour, lw=1.2)
            axes.plot(found.params, found.loss, "D", mfc="white", mec=colour, ms=6)
    axes.set(xscale="log", xlabel="parameters that a token multiplies with", ylabel="validation bits per byte")
    axes.set_title("The ladder: equal compute, several sizes", fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def _frontier(axes: Axes, points: Sequence[Point], law: Law, forecast: dict[str, Any], result: dict[str, Any] | None) -> None:
    axes.plot([p.flops for p in points], [p.loss for p in points], "o", color="#94a3b8", ms=4, label="ladder")
    flops = np.geomspace(min(p.flops for p in points), forecast["flops"] * 1.3, 24)
    predicted = [law.predict(*law.optimum(c)[:2]) for c in flops]
    axes.plot(flops, [f.median for f in predicted], color=ACCENT, lw=1.4, label="law, best size")
    axes.fill_between(
        flops, [f.intervals[80][0] for f in predicted], [f.intervals[80][1] for f in predicted], color=ACCENT, alpha=0.15, lw=0
    )
    loss = forecast["loss_bits_per_byte"]
    low, high = loss["intervals"]["80"]
    axes.errorbar(
        forecast["flops"], loss["median"], [[loss["median"] - low], [high - loss["median"]]],
        fmt="s", color=ACCENT, capsize=4, label="forecast, 80 %",
    )  # fmt: skip
    if result is not None:
        axes.plot(result["flops"], result["bits_per_byte"], "*", color=MEASURED, ms=13, label="measured")
    axes.set(xscale="log", xlabel="training compute (FLOPs)", ylabel="validation bits per byte")
    axes.xaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(0.5, 0.2)))
    axes.set_title("The forecast, written before the run", fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def draw_law(points: Sequence[Point], law: Law, path: Path) -> None:
    """Loss over compute: the points, and the law at its optimal size up to ten times the largest compute."""
    figure, axes = plt.subplots(figsize=(6, 4.4), constrained_layout=True)
    axes.plot([p.flops for p in points], [p.loss for p in points], "o", color="#94a3b8", ms=3)
    flops = np.geomspace(min(p.flops for p in points), 10 * law.largest_flops, 30)
    predicted = [law.predict(*law.optimum(c)[:2]) for c in flops]
    axes.plot(flops, [f.median for f in predicted], color=ACCENT)
    low, high = ([f.intervals[80][i] for f in predicted] for i in (0, 1))
    axes.fill_between(flops, low, high, color=ACCENT, alpha=0.15, lw=0)
    axes.set(xscale="log", xlabel="training compute (FLOPs)", ylabel="loss", title="The law at its best size, 80 % interval")
    _save(figure, path)


def draw_run(events: Sequence[dict[str, Any]], path: Path) -> None:
    """Training loss and speed along a run."""
    steps = [e for e in events if e["event"] == "step"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3), constrained_layout=True)
    tokens = [e["tokens"] / 1e6 for e in steps]
    left.plot(tokens, [e["loss"] for e in steps], color=INK, lw=1)
    left.set(xlabel="million tokens", ylabel="training loss (nats per token)", title="Loss")
    right.plot(tokens, [e["tokens_per_s"] / 1e3 for e in steps], color=INK, lw=1)
    right.set(xlabel="million tokens", ylabel="thousand tokens per second", title="Speed", ylim=(0, None))
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_file(path) as scratch:
        figure.savefig(scratch, dpi=140)
    plt.close(figure)
