"""What a policy sees: a pool of equal nodes, the services and jobs that hold them, and the jobs that wait.

A policy says what size each holder should have; a world chooses which nodes, and gives no more than there are. A simulated
pool has thousands of nodes, a live one has a slot for each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


@dataclass(slots=True, eq=False)
class Job:
    """A training job, between `least` and `most` nodes or none. `work_s` are seconds left at `least` nodes when it came to its
    size; from `begins` it makes progress, with a checkpoint every `interval_s`. `estimate` is the error of its owner's guess."""

    name: str
    least: int
    most: int
    came: float
    work_s: float
    nodes: int = 0
    since: float = 0.0
    begins: float = 0.0
    until: float | None = None
    save_s: float = 30.0
    restart_s: float = 120.0
    interval_s: float = 1800.0
    scaling: float = 1.0
    estimate: float = 1.0
    begun: float | None = None
    version: int = 0

    def speed(self, nodes: int) -> float:
        """Relative to that of `least` nodes."""
        return 1.0 if nodes == self.least else (nodes / self.least) ** self.scaling

    def left_s(self, now: float) -> float:
        """Seconds of work that are left at `least` nodes, as its owner guesses."""
        if not self.nodes or now <= self.begins:
            return self.work_s * self.estimate
        return max(0.0, self.work_s - (now - self.begins) * self.speed(self.nodes)) * self.estimate

    def unsaved_s(self, now: float) -> float:
        """Seconds since its last checkpoint, or since it began to start."""
        return (now - self.begins) % self.interval_s if now > self.begins else now - self.since


@dataclass(slots=True, eq=False)
class Service:
    """Chat or ranking. `nodes` are those that answer or start; each answers `per_node` requests/s within the service's bounds.

    Rates of the time to come are quantiles of the forecast, in bins of `bin_s` seconds, `into_s` into the first: `high` is
    seldom passed, `middle` as often as not.
    """

    name: str
    own: int
    per_node: float
    start_s: float = 60.0
    least: int = 1
    nodes: int = 0
    rate: float = 0.0
    high: Sequence[float] = ()
    middle: Sequence[float] = ()
    bin_s: float = 600.0
    into_s: float = 0.0
    until: float | None = None  # when what it has beyond its own is due

    def highest(self, seconds: float, load: float) -> float:
        """The highest rate from now to so many seconds ahead.

        That is the rate of this moment, which is to be a share `load` of what answers, or a point of the line from it to the
        forecasts at the begins of the next bins, which have their own margin.
        """
        found, at, rate = self.rate / load, 0.0, self.rate
        for i in range(1, len(self.high)):
            begin = i * self.bin_s - self.into_s
            if begin > seconds:
                return max(found, rate + (float(self.high[i]) - rate) * (seconds - at) / (begin - at))
            at, rate = begin, float(self.high[i])
            found = max(found, rate)
        return found

    def needs(self, rate: float, load: float = 1.0) -> int:
        """The nodes that answer a rate at a share `load` of what they can."""
        return max(self.least, math.ceil(rate / (load * self.per_node) - 1e-9))


@dataclass(slots=True)
class Pool:
    """`nodes` are up, `leaving` of them on the way from one holder to the next.

    `allowed` may be busy under the cap of the site's power, `allowed_soon` at the least within `switch_s`. `periodic` looks come
    at even times, others when something changed.
    """

    name: str
    nodes: int = 0
    services: list[Service] = field(default_factory=list)
    running: dict[str, Job] = field(default_factory=dict)
    waiting: list[Job] = field(default_factory=list)
    leaving: int = 0
    training: int = 0
    serving: int = 0
    allowed: int = 10**9
    allowed_soon: int = 10**9
    switch_s: float = 180.0  # a switch takes some of them,
    leave_s: float = 60.0  # and leaving, from the word to the last of it, at most so many
    periodic: bool = True
    worth_usd: float = 0.0  # what a node is worth for an hour,
    energy_usd: float = 0.0  # and what its energy and carbon cost for one, at work

    @property
    def own(self) -> int:
        """Nodes that belong to services."""
        return sum(service.own for service in self.services)

    @property
    def room(self) -> int:
        """How many more nodes may be busy."""
        busy = self.training + self.serving + self.leaving
        return min(self.nodes, self.allowed) - busy


class Size(NamedTuple):
    """From here on `holder` has so many nodes; of a loan until a deadline. A job that is told with `save` writes a checkpoint
    before it gives nodes away, otherwise it loses what it did since its last."""

    holder: str
    nodes: int
    until: float | None = None
    why: str = ""
    save: bool = True


class Policy(Protocol):
    """Chooses sizes from nothing but what it is shown, which it does not change."""

    def decide(self, now: float, pool: Pool) -> list[Size]: ...
