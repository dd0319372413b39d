"""The words that worlds and the controller share: slots, who holds each and until when, the demand for chat, limits, and moves.

Times are in seconds since the epoch, in a simulation since its start.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tenfold.fleet.pools import Job, Pool, Service

SERVICE = "chat"  # the role that `demand` is of
DRAINED = "drained"  # the role of a slot in which nothing works
MARGIN = 1 / 0.9  # of expected rates, which have none of their own


@dataclass(frozen=True)
class Slot:
    """A place for one role. `since` is when its holder came; `until` when a borrower must be gone, None for the owner.

    `turning` says that a role leaves or starts, `role` being the one that comes; `idle` that the owner has no work left. At work it
    takes `watts` of its site's power; 0 is unknown.
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
        """Whether it takes the power of a slot at work."""
        return self.turning or (self.role != DRAINED and not self.idle)


@dataclass(frozen=True)
class Wish:
    """What an operator wants until `until`: slots lent to a role, slots drained, or a site's power below a cap.

    `target` is a slot, an owner (all its slots) or a site. `state` and `said` are the controller's last word on it.
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
        """Those that it is about."""
        names = ("site",) if self.kind == "cap" else ("name", "owner")
        return [slot for slot in slots if self.target in [getattr(slot, name) for name in names]]


@dataclass(frozen=True)
class Demand:
    """Requests per second: those that come `now`, are `expected` in bins of `bin_s` seconds, `into_s` into the first, and that one
    slot answers."""

    now: float = 0.0
    expected: tuple[float, ...] = ()
    bin_s: float = 1.0
    into_s: float = 0.0
    per_slot: float = 1.0


@dataclass(frozen=True)
class Limits:
    """Seconds: a role has `leave_s` to leave and `start_s` to start; the controller looks every `tick_s`; a switch takes some
    `switch_s`. A role without a sign of life for `hung_s` is ended. One that fails is started again, unless it did so `restarts`
    times in `restarts_s`."""

    leave_s: float = 10.0
    start_s: float = 120.0
    tick_s: float = 0.5
    switch_s: float = 5.0
    hung_s: float = 300.0
    restarts: int = 3
    restarts_s: float = 1800.0

    @property
    def leaving_s(self) -> float:
        """From the look at which a role is told to leave to the look that finds it gone."""
        return self.leave_s + 2 * self.tick_s


@dataclass(frozen=True)
class Fleet:
    """What a world shows. `roles` are those that work in more than their own slots; `wishes` are open ones."""

    slots: tuple[Slot, ...]
    demand: Demand
    limits: Limits
    roles: frozenset[str] = frozenset({SERVICE})
    wishes: tuple[Wish, ...] = ()

    def room(self, site: str) -> int:
        """How many more slots of the site may work under the caps that operators wish."""
        here = [slot for slot in self.slots if slot.site == site]
        watts = max((slot.watts for slot in here), default=0.0)
        caps = [wish.mw for wish in self.wishes if wish.kind == "cap" and wish.target == site and wish.mw is not None]
        if not caps or not watts:
            return len(self.slots)
        return math.floor(1e6 * min(caps) / watts + 1e-9) - sum(slot.busy for slot in here)

    def pool(self) -> Pool:
        """As a policy sees it: each slot that is not drained is a node, the owners' work is a job that stops and goes on."""
        slots, demand = [slot for slot in self.slots if slot.role != DRAINED], self.demand
        held = [slot for slot in slots if slot.role == SERVICE]
        high = tuple(MARGIN * rate for rate in demand.expected)
        service = Service(
            SERVICE, sum(slot.owner == SERVICE for slot in slots), demand.per_slot, least=0, nodes=len(held), rate=demand.now,
            high=high, middle=demand.expected, bin_s=demand.bin_s, into_s=demand.into_s,
        )  # fmt: skip
        working = [slot for slot in slots if slot.role != SERVICE and not slot.idle]
        jobs = {slot.name: Job(slot.name, 1, 1, slot.since, 1e9, 1, slot.since, slot.since) for slot in working}
        return Pool(
            "slots", len(slots), [service], jobs, training=len(jobs), serving=len(held), switch_s=self.limits.switch_s,
            leave_s=2 * self.limits.leaving_s + self.limits.tick_s,
        )  # fmt: skip


class Lend(NamedTuple):
    """Let `role` have the slot until a deadline."""

    slot: str
    role: str
    until: float
    why: str


class Return(NamedTuple):
    """Give the slot back to its owner."""

    slot: str
    why: str


Move = Lend | Return


def holder_after(move: Move, owner: str) -> tuple[str, float | None]:
    """The role that has the slot after a move, and until when: None for the owner."""
    return (move.role, move.until) if isinstance(move, Lend) else (owner, None)
