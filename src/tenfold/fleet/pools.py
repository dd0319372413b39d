"""What a policy sees: a pool of equal nodes, the services and jobs that hold them, and the jobs that wait.

A policy decides how many nodes each holder should have. The world, simulated or live, chooses which nodes, and gives no more than
there are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


@dataclass(slots=True, eq=False)
class Job:
    """A training job on `least` to `most` nodes, or waiting with none. Times are in seconds.

    It arrived at `came`, first got nodes at `begun`, has its present size `since` and makes progress from `begins`, after saving
    and restarting. `work_s` is the work left at that time, in seconds on `least` nodes. It writes a checkpoint every `interval_s`.
    `estimate` is the factor by which its owner's guess of the work is wrong. `version` counts its changes of size.
    """

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
        """The speed on so many nodes, relative to that on `least` nodes."""
        return 1.0 if nodes == self.least else (nodes / self.least) ** self.scaling

    def left_s(self, now: float) -> float:
        """Seconds of work left on `least` nodes, as its owner estimates them."""
        if not self.nodes or now <= self.begins:
            return self.work_s * self.estimate
        return max(0.0, self.work_s - (now - self.begins) * self.speed(self.nodes)) * self.estimate

    def unsaved_s(self, now: float) -> float:
        """Seconds since its last checkpoint, or, while it starts, since it got its nodes."""
        return (now - self.begins) % self.interval_s if now > self.begins else now - self.since

    def stop(self, now: float, save: bool) -> float:
        """Account for a stop: its progress is kept up to `now` with `save`, else up to its last checkpoint. Returns lost
        node-seconds."""
        if not self.nodes:
            return 0.0
        done = max(0.0, now - self.begins)
        lost = now - self.since if not done else self.save_s if save else self.unsaved_s(now)
        kept = done if save else done - (self.unsaved_s(now) if done else 0.0)
        self.work_s = max(0.0, self.work_s - kept * self.speed(self.nodes))
        return lost * self.nodes

    def start(self, now: float, wait_s: float, nodes: int) -> float:
        """Give it so many nodes, on which it makes progress after `wait_s` and a restart.

        Returns lost node-seconds: those of the restart where the job worked before, and 0 at its first start.
        """
        lost = 0.0 if self.begun is None else self.restart_s * nodes
        self.begun = now if self.begun is None else self.begun
        self.nodes, self.since, self.begins = nodes, now, now + wait_s + self.restart_s
        self.version += 1
        return lost


@dataclass(slots=True, eq=False)
class Service:
    """Chat or ranking. `nodes` counts the nodes that answer or start; each can answer `per_node` requests/s within its latency
    bounds.

    `own` nodes belong to it, and it never has fewer than `least`. `rate` is the present demand in requests/s. `middle` and `high`
    are the median and a high quantile of the forecast, in bins of `bin_s` seconds; `into_s` seconds of the first bin are over.
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
    until: float | None = None  # when it must give back the nodes that it has beyond its own

    def highest(self, seconds: float, load: float) -> float:
        """The highest rate to provide for, from now to so many seconds ahead.

        It is the larger of the present rate divided by `load`, the share of the nodes' throughput that may be used, and the highest
        point of the line from the present rate through the `high` forecasts at the beginnings of the next bins, which have a margin
        of their own.
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
        """The nodes that are needed to answer a rate with a share `load` of their throughput; `least` at the least."""
        return max(self.least, math.ceil(rate / (load * self.per_node) - 1e-9))


@dataclass(slots=True)
class Pool:
    """A pool of equal nodes. `nodes` are up; `serving` are held by services, `training` by jobs, and `leaving` are being released.

    The site's power cap allows `allowed` nodes to be busy now, and `allowed_soon` at the lowest point within `switch_s` seconds.
    `periodic` is true where the policy is called by the clock, and false where it is called because something changed.
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
    switch_s: float = 180.0  # how long a switch of roles takes, about
    leave_s: float = 60.0  # how long a role may take to leave, from the order to its end
    periodic: bool = True
    worth_usd: float = 0.0  # what an hour of a node is worth
    energy_usd: float = 0.0  # what the energy and carbon of an hour of a busy node cost

    @property
    def own(self) -> int:
        """The number of nodes that services own."""
        return sum(service.own for service in self.services)

    @property
    def room(self) -> int:
        """How many more nodes may be busy."""
        busy = self.training + self.serving + self.leaving
        return min(self.nodes, self.allowed) - busy

    def size_service(self, service: Service, size: "Size") -> int:
        """Resize a service, as far as there is room. Returns the nodes that it got; a negative number are nodes that it gave
        back."""
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
        """Resize a job: it stops, with or without writing a checkpoint, and starts again from its last checkpoint.

        None where it has this size already, or where there is no room for its least size. Nodes that it releases after a checkpoint
        count as `leaving` until the caller frees them.
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
        """A running job lost a node, or failed. It goes on after `wait_s` with as many nodes, or with one fewer where no node is
        free; where that is below its least, it waits. Returns lost node-seconds."""
        lost, nodes = job.stop(now, False), job.nodes - (self.room < 0)
        self.training -= job.nodes
        if nodes >= job.least:
            self.training += nodes
            return lost + job.start(now, wait_s, nodes)
        self.wait(job)
        return lost

    def finish(self, job: Job) -> None:
        """Remove a running job that has finished."""
        del self.running[job.name]
        self.training -= job.nodes

    def wait(self, job: Job) -> None:
        """Put a job back into the queue, before those that arrived later."""
        self.running.pop(job.name, None)
        job.nodes, job.version = 0, job.version + 1
        at = next((i for i, other in enumerate(self.waiting) if other.came > job.came), len(self.waiting))
        self.waiting.insert(at, job)


class Resized(NamedTuple):
    """A job's nodes before (`had`) and after, the `leaving` nodes that are free only after it saved for `save_s` seconds, and the
    node-seconds that are lost."""

    had: int
    nodes: int
    leaving: int
    save_s: float
    lost_s: float


class Size(NamedTuple):
    """A decision: `holder`, a service or job, shall have `nodes`, in a loan until the deadline `until`. With `save` a job writes a
    checkpoint before it releases nodes; without, it loses its work since the last one."""

    holder: str
    nodes: int
    until: float | None = None
    why: str = ""
    save: bool = True


class Policy(Protocol):
    """Decides sizes from the pool that it is given alone, and does not change the pool."""

    def decide(self, now: float, pool: Pool) -> list[Size]: ...
