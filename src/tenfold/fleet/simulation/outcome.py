"""What comes of one simulation, and what may be recorded in place of what is drawn."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tenfold.fleet.pools import Job
from tenfold.fleet.setup import DAY_S, HOUR_S, Setup
from tenfold.fleet.simulation.meter import Meter
from tenfold.fleet.traces import BIN_S


@dataclass
class Outcome:
    """What came of one simulation: jobs as (came, began or None, ended or None, nodes), lost node-seconds by cause, the meters,
    the highest watts of all pools together at a tick, a row for every sample, and the moves of the busiest day, which begins at
    `busiest_s`."""

    jobs: list[tuple[float, float | None, float | None, int]] = field(default_factory=list)
    lost_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("policy", "failures"), 0.0))
    moves: int = 0
    stops: int = 0
    events: int = 0
    meters: dict[str, Meter] = field(default_factory=dict)
    peak_w: float = 0.0
    series: list["Row"] = field(default_factory=list)
    busiest_s: float = 0.0
    busiest: list["Moved"] = field(default_factory=list)

    def keep(self, move: "Moved") -> None:
        """Keep a move that changed something on the busiest day."""
        if move.had != move.nodes and 0 <= move.at_s - self.busiest_s <= DAY_S:
            self.busiest.append(move)

    def day(self) -> list["Row"]:
        """The samples of the busiest day."""
        return [row for row in self.series if 0 <= row.at_h * HOUR_S - self.busiest_s <= DAY_S]


class Row(NamedTuple):
    """All pools at a moment: nodes by what they do, those that are up or `down`, requests/s with the forecast that was made for the
    next hour and what the nodes `can` answer, watts under their cap."""

    at_h: float
    training: int
    answering: int
    starting: int
    saving: int
    nodes: int
    down: int
    rate: float
    middle: float
    high: float
    can: float
    watts: float
    cap_w: float


class Moved(NamedTuple):
    """Nodes of a pool that `holder` had and has now, of a loan until when, and why."""

    at_s: float
    pool: str
    holder: str
    had: int
    nodes: int
    until_s: float | None
    why: str


class Recorded(NamedTuple):
    """What came in place of what is drawn: jobs with their table's names, in their order, and nodes of pools that failed: when,
    who held it and, after so many seconds, it was back."""

    work: list[tuple[str, Job]]
    failures: list[tuple[float, str, str, float]]


def busiest_day_s(setup: Setup) -> float:
    """When the day begins whose demand has the highest peak."""
    bins = np.arange(0, setup.file.simulation.days * DAY_S, BIN_S)
    rates = [sum(service.at(at) for service in setup.services.values()) for at in bins]
    return DAY_S * (bins[int(np.argmax(rates))] // DAY_S)
