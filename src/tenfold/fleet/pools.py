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

    def stop(self, now: float, save: bool) -> float:
        """Keep what it did, up to a checkpoint that it writes or up to its last one; returns the node-seconds that are lost."""
        if not self.nodes:
            return 0.0
        done = max(0.0, now - self.begins)
        lost = now - self.since if not done else self.save_s if save else self.unsaved_s(now)
        kept = done if save else done - (self.unsaved_s(now) if done else 0.0)
        self.work_s = max(0.0, self.work_s - kept * self.speed(self.nodes))
        return lost * self.nodes

    def start(self, now: float, wait_s: float, nodes: int) -> float:
        """Let it have so many nodes, and make progress after `wait_s` and a restart; returns the node-seconds of a restart, which
        are lost where it worked before."""
        lost = 0.0 if self.begun is None else self.restart_s * nodes
        self.begun = now if self.begun is None else self.begun
        self.nodes, self.since, self.begins = nodes, now, now + wait_s + self.restart_s
        self.version += 1
        return lost


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

    def size_service(self, service: Service, size: "Size") -> int:
        """Bring a service to a size, as far as there is room; returns how many nodes it got, or gave back where below zero."""
        more = max(0, size.nodes) - service.nodes
        if more > 0:
            more = min(more, max(0, self.room))
            service.until = size.until if size.nodes > service.own else None
        elif more == 0:
            service.until = size.until
        elif size.nodes <= service.own:
            service.until = None
        service.nodes += more
        self.serving += more
        return more

    def size_job(self, now: float, job: Job, size: "Size") -> "Resized | None":
        """Bring a job to a size: it stops with or without a checkpoint, and starts from the last one it has.

        None where that may not be, or it has the size. Nodes that it leaves with a checkpoint are `leaving` until they are `freed`.
        """
        had = job.nodes
        new = max(0, min(size.nodes, job.most, had + max(0, self.room)))
        if new == had or 0 < new < job.least:
            return None
        lost, save_s = job.stop(now, size.save), job.save_s if size.save and had else 0.0
        leaving = max(0, had - new) if save_s else 0
        self.leaving += leaving
        self.training += new - had
        if new:
            if not had:
                self.waiting.remove(job)
                self.running[job.name] = job
            lost += job.start(now, save_s, new)
        else:
            self.wait(job)
        return Resized(had, new, leaving, save_s, lost)

    def hit(self, now: float, job: Job, wait_s: float) -> float:
        """A running job lost a node, or failed: it goes on after `wait_s` with as many, with one fewer where there is no room, or
        waits. Returns the node-seconds that are lost."""
        lost, nodes = job.stop(now, False), job.nodes - (self.room < 0)
        self.training -= job.nodes
        if nodes >= job.least:
            self.training += nodes
            return lost + job.start(now, wait_s, nodes)
        self.wait(job)
        return lost

    def finish(self, job: Job) -> None:
        """A running job has ended."""
        del self.running[job.name]
        self.training -= job.nodes

    def wait(self, job: Job) -> None:
        """Back into the line, before those that came later."""
        self.running.pop(job.name, None)
        job.nodes, job.version = 0, job.version + 1
        at = next((i for i, other in enumerate(self.waiting) if other.came > job.came), len(self.waiting))
        self.waiting.insert(at, job)


class Resized(NamedTuple):
    """A job's nodes before and after, those that `leaving` it are not free before it has saved for `save_s`, and the node-seconds
    that are lost."""

    had: int
    nodes: int
    leaving: int
    save_s: float
    lost_s: float


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
