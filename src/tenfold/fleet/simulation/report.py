"""An HTML page about a simulated fleet: a table that compares policies, and pictures of the busiest day."""

from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from tenfold.fleet.setup import DAY_S
from tenfold.fleet.simulation.outcome import Outcome
from tenfold.fleet.simulation.results import WORDS
from tenfold.plan.plots import ACCENT, COLOURS, INK, MARK, QUIET, as_svg

NAMES = ("training", "answering", "starting", "saving", "idle", "down")


def draw_day(out: Outcome) -> str:
    """An SVG of the busiest day: demand and forecast, nodes by role, and power with its cap."""
    rows = np.array(out.day())
    at, training, ready, starting, saving, nodes, down, rate, middle, high, can, watts, cap = rows.T
    figure, (above, mid, below) = plt.subplots(
        3, 1, figsize=(9, 7), sharex=True, height_ratios=[2, 3, 1.6], constrained_layout=True
    )
    above.fill_between(at, middle, high, color=ACCENT, alpha=0.15, lw=0, label="forecast for an hour ahead, median to 90 %")
    above.plot(at, can, color=QUIET, lw=1, label="throughput of the nodes within the latency bounds")
    above.plot(at, rate, color=INK, lw=1.4, label="requests/s")
    idle = np.maximum(0, nodes - training - ready - starting - saving)
    colours = [COLOURS[0], COLOURS[1], COLOURS[8], COLOURS[2], "#e2e8f0", COLOURS[4]]
    mid.stackplot(at, training, ready, starting, saving, idle, down, labels=NAMES, colors=colours, lw=0)
    mid.set_ylabel("nodes")
    below.plot(at, watts / 1e6, color=INK, lw=1.4, label="power")
    if np.isfinite(cap).all():
        below.step(at, cap / 1e6, color=MARK, lw=1.2, where="post", label="cap")
    below.set(xlabel="hours since the start", ylabel="MW", ylim=(0, None), xlim=(at[0], at[-1]))
    for axes in (above, mid, below):
        _plain(axes)
    return as_svg(figure)


def _plain(axes: Axes) -> None:
    axes.spines[["right", "top"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))


def html(title: str, found: Mapping[str, Mapping[str, Any]], out: Mapping[str, Outcome]) -> str:
    """The page. `found` has the figures over seeds by policy, and `out` one outcome of each policy to draw."""
    template = resources.files("tenfold.fleet.simulation").joinpath("report.html.jinja").read_text()
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    names = list(found)
    rows = [(words, [said(found[name][key]) for name in names]) for key, words in WORDS.items()]
    return page.render(
        title=title,
        names=names,
        rows=rows,
        days={name: draw_day(one) for name, one in out.items()},
        day=int(out[names[0]].busiest_s // DAY_S) + 1,
    )


def said(figure: Mapping[str, float]) -> str:
    """A mean ± half of its interval, with three digits."""
    half = (figure["high"] - figure["low"]) / 2
    return f"{_digits(figure['mean'])}{f' ± {_digits(half)}' if half else ''}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
