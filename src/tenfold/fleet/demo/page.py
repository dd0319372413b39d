"""The picture of the fleet's demonstration and its page: the fixed split on the left, lent slots on the right."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tenfold.fleet.demo.day import SWITCHING, Day, Known
from tenfold.plan.plots import ACCENT, COLOURS, INK, MARK, QUIET, as_svg
from tenfold.spec.files import atomic_file, write_text

COLOUR = {"train": COLOURS[0], "chat": COLOURS[1], SWITCHING: "#cbd5e1"}
WORDS = {"train": "trains", "chat": "answers chat", SWITCHING: "switches"}
TITLES = {"static": "Fixed split: one slot each", "lend": "Lent: chat gets both while it needs them"}
SMALLEST_S = 0.01  # smallest time to a first token that is drawn, since the axis is logarithmic
GAP_S = 2.0  # a longer gap between two steps means that the run waited
Losses = Mapping[str, Mapping[int, tuple[float, float]]]


def write_page(
    folder: Path, known: Known, days: Mapping[str, Day], simulated: Mapping[str, Day], losses: Losses, found: dict[str, Any]
) -> None:
    """Write `demo.png` and `demo.html`. `losses` has (second of the day, loss) by day and step."""
    figure = draw(known, days, simulated, losses, found["bound_s"])
    with atomic_file(folder / "demo.png") as scratch:
        figure.savefig(scratch, dpi=110)
    template = resources.files("tenfold.fleet.demo").joinpath("demo.html.jinja").read_text()
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    write_text(folder / "demo.html", page.render(found=found, known=known, names=TITLES, picture=as_svg(figure)))


def draw(known: Known, days: Mapping[str, Day], simulated: Mapping[str, Day], losses: Losses, bound_s: float) -> Figure:
    """A column for each day, over its seconds: requests, slots by role, times to first tokens, training loss."""
    figure, rows = plt.subplots(
        4, len(days), figsize=(6.6 * len(days), 9.5), sharex=True, sharey="row", height_ratios=[2, 1.1, 2, 2], layout="constrained"
    )
    for column, (name, day) in enumerate(days.items()):
        above, slots, first, loss = rows[:, column]
        above.set_title(TITLES[name], fontsize=13, loc="left", color=INK, pad=24)
        _requests(above, known, day)
        _slots(slots, day, simulated[name])
        _first_tokens(first, day, simulated[name], bound_s)
        _loss(loss, losses, name)
        loss.set(xlabel="seconds of the day", xlim=(0, known.day_s))
        for axes in (above, first, loss):
            axes.legend(fontsize=8, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 0.98), borderaxespad=0.1)
        for axes in rows[:, column]:
            axes.spines[["right", "top"]].set_visible(False)
            axes.tick_params(labelsize=8)
    for axes, label in zip(rows[:, 0], ("requests/s", "", "first token after, s", "training loss"), strict=True):
        axes.set_ylabel(label)
    return figure


def _requests(axes: Axes, known: Known, day: Day) -> None:
    """Requests that arrived and answers that began, by hour, over the throughput of the chat slots."""
    edges, at = np.arange(25) * known.hour_s, np.linspace(0, known.day_s, 500)
    chat = np.array([sum(span.what == "chat" and span.start <= t < span.end for span in day.spans) for t in at])
    can = np.array([0.0, *(servers / seconds for servers, seconds in enumerate(known.answers_s, 1))])[chat]
    axes.fill_between(at, can, color=COLOUR["chat"], alpha=0.18, lw=0, label="what chat's slots can answer")
    for what, times, colour in (("asked", day.came, INK), ("answers begun", day.came + day.first_s, ACCENT)):
        rates = np.histogram(times, edges)[0] / known.hour_s
        axes.stairs(rates, edges, color=colour, lw=1.6, label=what, baseline=None)
    axes.set_ylim(0, None)


def _slots(axes: Axes, day: Day, simulated: Day) -> None:
    """A bar for each slot, and a thin one below it for the simulated day."""
    names = sorted({span.slot for span in day.spans})
    for one, height, shift in ((day, 0.5, 0.0), (simulated, 0.14, 0.36)):
        for span in one.spans:
            axes.barh(names.index(span.slot) + shift, span.end - span.start, height, left=span.start, color=COLOUR[span.what], lw=0)
    labels = [*((i, name) for i, name in enumerate(names)), *((i + 0.36, "simulated") for i in range(len(names)))]
    axes.set_yticks([at for at, _ in labels], [label for _, label in labels])
    axes.set_ylim(len(names) - 0.4, -0.4)
    axes.legend(
        handles=[Patch(color=COLOUR[what], label=words) for what, words in WORDS.items()],
        fontsize=8, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 0.98), borderaxespad=0.1,
    )  # fmt: skip


def _first_tokens(axes: Axes, day: Day, simulated: Day, bound_s: float) -> None:
    for one, colour, size, label in ((simulated, QUIET, 3, "simulated"), (day, ACCENT, 9, "each request")):
        axes.scatter(one.came, np.maximum(SMALLEST_S, one.first_s), s=size, color=colour, lw=0, alpha=0.6, label=label)
    axes.axhline(bound_s, color=MARK, lw=1.4, label=f"bound {bound_s:g} s")
    missed = float((day.first_s > bound_s).mean())
    _say(axes, f"{missed:.1%} wait longer" if missed else "none waits longer", missed > 0.01)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")


def _loss(axes: Axes, losses: Losses, name: str) -> None:
    """The loss of this day's run over that of the static day, which is never interrupted."""
    calm = np.array(list(losses["static"].values()))
    axes.plot(*calm.T, color=QUIET, lw=2.5, label="undisturbed run")
    if name == "static":
        return
    own = losses[name]
    at, loss = np.array(list(own.values())).T
    waited = np.flatnonzero(np.diff(at) > GAP_S) + 1  # the line is broken there
    axes.plot(np.insert(at, waited, np.nan), np.insert(loss, waited, np.nan), color=COLOUR["train"], lw=0.9, label="lent run")
    common = own.keys() & losses["static"].keys()
    same = all(own[step][1] == losses["static"][step][1] for step in common)
    _say(axes, f"equal to the bit at all {len(common):,} steps" if same else "losses differ", not same)


def _say(axes: Axes, text: str, bad: bool) -> None:
    """Write a panel's result above it, in the warning colour where it is `bad`."""
    axes.text(0.99, 1.03, text, transform=axes.transAxes, ha="right", fontsize=11, weight="bold", color=MARK if bad else INK)
