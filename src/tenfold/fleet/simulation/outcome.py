"""The outcome of one simulation, and recorded events that replace drawn ones."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tenfold.fleet.pools import Job
from tenfold.fleet.setup import DAY_S, HOUR_S, Setup
from tenfold.fleet.simulation.meter import Meter
from tenfold.fleet.traces import BIN_S


@dataclass
class Outcome:
    """The outcome of one simulation.

    `jobs` are (arrival, first start or None, end or None, nodes), `lost_s` lost node-seconds by cause in the days in which jobs
    arrive, `peak_w` the highest power of all pools together at a tick, `series` the samples, and `busiest` the moves of the busiest
    day, which begins at `busiest_s`.
    """

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
        """Keep a move if it changed a size on the busiest day."""
        if move.had != move.nodes and 0 <= move.at_s - self.busiest_s <= DAY_S:
            self.busiest.append(move)

    def day(self) -> list["Row"]:
        """The samples of the busiest day."""
        return [row for row in self.series if 0 <= row.at_h * HOUR_S - self.busiest_s <= DAY_S]


class Row(NamedTuple):
    """A sample of all pools together: nodes by what they do, nodes that are up and `down`, the rate in requests/s, the forecast for
    one hour ahead (`middle`, `high`), the rate that the nodes `can` answer, the power and its cap."""

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
    """A move: the nodes that `holder` had and has from then on, the deadline of a loan, and the reason."""

    at_s: float
    pool: str
    holder: str
    had: int
    nodes: int
    until_s: float | None
    why: str


class Recorded(NamedTuple):
    """Recorded events that replace drawn ones: jobs as (name of their table, job) in the order of arrival, and failures of nodes as
    (time, pool, holder, seconds until the node was back)."""

    work: list[tuple[str, Job]]
    failures: list[tuple[float, str, str, float]]


def busiest_day_s(setup: Setup) -> float:
    """The beginning of the day with the highest demand, in seconds."""
    bins = np.arange(0, setup.file.simulation.days * DAY_S, BIN_S)
    rates = [sum(service.at(at) for service in setup.services.values()) for at in bins]
    return DAY_S * (bins[int(np.argmax(rates))] // DAY_S)
