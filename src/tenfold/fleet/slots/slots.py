"""The types that worlds and the controller share: slots and who holds each until when, wishes, demand, limits and moves.

Times are in seconds since the epoch, or, in a simulation, since its start.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tenfold.fleet.pools import Job, Pool, Service

DRAINED = "drained"  # the role of a slot that is kept empty
MARGIN = 1 / 0.9  # by which expected rates are multiplied, since they come without a margin


@dataclass(frozen=True)
class Slot:
    """A place for one role. Its lease began at `since`; `until` is a borrower's deadline, and None for the owner.

    `turning` is true while one role leaves or the next one, `role`, starts; `idle` where the owner has no work left. A busy slot
    draws `watts` of its site's power; 0 is unknown.
    """

    name: str
    owner: str
    role: str
    since: float
    until: float | None = None
    turning: bool = False
    idle: bool = False
    site: str = "local"
    watts: float = 0.0

    @property
    def busy(self) -> bool:
        """Whether it draws the power of a busy slot."""
        return self.turning or (self.role != DRAINED and not self.idle)


@dataclass(frozen=True)
class Wish:
    """What an operator wants until `until`: slots lent to a role, slots drained, or a site's power below a cap of `mw` megawatts.

    `target` is a slot, an owner (all its slots) or a site. `state` and `said` are the controller's last answer: "waits" before the
    first one, then "done", "on its way" or "cannot", or "withdrawn" by the operator; and a sentence about it.
    """

    id: int
    kind: Literal["lend", "drain", "cap"]
    target: str
    until: float
    role: str | None = None
    mw: float | None = None
    who: str = ""
    why: str = ""
    at: float = 0.0
    state: str = "waits"
    said: str = ""

    def slots(self, slots: Iterable[Slot]) -> list[Slot]:
        """The slots that the wish is about."""
        names = ("site",) if self.kind == "cap" else ("name", "owner")
        return [slot for slot in slots if self.target in [getattr(slot, name) for name in names]]


@dataclass(frozen=True)
class Demand:
    """Requests per second of a service: the present rate `now`, the rates `expected` in bins of `bin_s` seconds, and what one slot
    can answer (`per_slot`). `into_s` seconds of the first bin are over."""

    now: float = 0.0
    expected: tuple[float, ...] = ()
    bin_s: float = 1.0
    into_s: float = 0.0
    per_slot: float = 1.0


Demands = Mapping[str, Callable[[float], Demand]]  # of each service, a function from the fleet's time to its demand


@dataclass(frozen=True)
class Limits:
    """Times in seconds: a role may take `leave_s` to leave and `start_s` to start; the control loop runs every `tick_s`; a switch
    takes about `switch_s`. A role without progress for `hung_s` is killed. A role that fails is started again, at most `restarts`
    times in `restarts_s` seconds."""

    leave_s: float = 10.0
    start_s: float = 120.0
    tick_s: float = 0.5
    switch_s: float = 5.0
    hung_s: float = 300.0
    restarts: int = 3
    restarts_s: float = 1800.0

    @property
    def leaving_s(self) -> float:
        """From the iteration of the control loop that tells a role to leave to the one that finds it gone, at most."""
        return self.leave_s + 2 * self.tick_s


@dataclass(frozen=True)
class Fleet:
    """The state that a world reports. `demands` are those of the services, by role: these can run in other slots than their own.
    `wishes` are the open ones."""

    slots: tuple[Slot, ...]
    demands: Mapping[str, Demand]
    limits: Limits
    wishes: tuple[Wish, ...] = ()

    def room(self, site: str) -> int:
        """How many more slots of the site may be busy under the operators' power caps; negative where too many are."""
        here = [slot for slot in self.slots if slot.site == site]
        watts = max((slot.watts for slot in here), default=0.0)
        caps = [wish.mw for wish in self.wishes if wish.kind == "cap" and wish.target == site and wish.mw is not None]
        if not caps or not watts:
            return len(self.slots)
        return math.floor(1e6 * min(caps) / watts + 1e-9) - sum(slot.busy for slot in here)

    def pool(self) -> Pool:
        """The fleet as a policy sees it: each slot that is not drained is a node, and the work of a role that is no service is a
        job of one node."""
        slots = [slot for slot in self.slots if slot.role != DRAINED]
        services = [_service(name, demand, slots) for name, demand in self.demands.items()]
        working = [slot for slot in slots if slot.role not in self.demands and not slot.idle]
        jobs = {slot.name: Job(slot.name, 1, 1, slot.since, 1e9, 1, slot.since, slot.since) for slot in working}
        return Pool(
            "slots", len(slots), services, jobs, training=len(jobs), serving=sum(service.nodes for service in services),
            switch_s=self.limits.switch_s, leave_s=2 * self.limits.leaving_s + self.limits.tick_s,
        )  # fmt: skip


def _service(name: str, demand: Demand, slots: list[Slot]) -> Service:
    """A service as a policy sees it, with the slots that it owns and holds."""
    own, held = sum(slot.owner == name for slot in slots), sum(slot.role == name for slot in slots)
    return Service(
        name, own, demand.per_slot, least=0, nodes=held, rate=demand.now, high=tuple(MARGIN * rate for rate in demand.expected),
        middle=demand.expected, bin_s=demand.bin_s, into_s=demand.into_s,
    )  # fmt: skip


class Lend(NamedTuple):
    """Lend the slot to `role` until the deadline `until`."""

    slot: str
    role: str
    until: float
    why: str


class Return(NamedTuple):
    """Return the slot to its owner."""

    slot: str
    why: str


Move = Lend | Return


def holder_after(move: Move, owner: str) -> tuple[str, float | None]:
    """The role that has the slot after a move, and its deadline, which is None for the owner."""
    return (move.role, move.until) if isinstance(move, Lend) else (owner, None)
