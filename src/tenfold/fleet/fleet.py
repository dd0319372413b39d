"""What a policy sees and may do: slots, who holds each and until when, the demand for chat, and moves.

A world shows the fleet and carries moves out. A policy sees it as a pool of nodes (`pools.py`) and chooses sizes; which slots
follow from that is chosen here. The same policy decides for a simulated and a live world. Policies are entry points of the group
`tenfold.policies`. Times are in seconds since the epoch, in a simulation since its start.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tenfold.fleet.pools import Job, Policy, Pool, Service, Size

SERVICE = "chat"  # the role that `demand` is of
MARGIN = 1 / 0.9  # of expected rates, which have none of their own


@dataclass(frozen=True)
class Slot:
    """A place for one role. `since` is when its holder came; `until` when a borrower must be gone, None for the owner.

    `turning` says that a role leaves or starts, `idle` that the owner has no work left.
    """

    name: str
    owner: str
    role: str
    since: float
    until: float | None = None
    turning: bool = False
    idle: bool = False


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
    `switch_s`."""

    leave_s: float = 10.0
    start_s: float = 120.0
    tick_s: float = 0.5
    switch_s: float = 5.0


@dataclass(frozen=True)
class Fleet:
    """What a world shows."""

    slots: tuple[Slot, ...]
    demand: Demand
    limits: Limits

    def pool(self) -> Pool:
        """As a policy sees it: each slot is a node, the owners' work is a job that stops and goes on."""
        held, demand = [slot for slot in self.slots if slot.role == SERVICE], self.demand
        high = tuple(MARGIN * rate for rate in demand.expected)
        service = Service(
            SERVICE, sum(slot.owner == SERVICE for slot in self.slots), demand.per_slot, least=0, nodes=len(held), rate=demand.now,
            high=high, middle=demand.expected, bin_s=demand.bin_s, into_s=demand.into_s,
        )  # fmt: skip
        working = [slot for slot in self.slots if slot.role != SERVICE and not slot.idle]
        jobs = {slot.name: Job(slot.name, 1, 1, slot.since, 1e9, 1, slot.since, slot.since) for slot in working}
        return Pool(
            "slots", len(self.slots), [service], jobs, training=len(jobs), serving=len(held), switch_s=self.limits.switch_s,
            leave_s=2 * self.limits.leave_s + 5 * self.limits.tick_s,
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


class World(Protocol):
    """A fleet, simulated or live. `apply` begins a move and does not wait for its end."""

    def observe(self, now: float) -> Fleet: ...

    def apply(self, move: Move) -> None: ...


def tick(now: float, world: World, policy: Policy) -> list[Move]:
    """Look, decide and apply once. A loan that is due ends whatever the policy says; a size that may not be moves nothing."""
    fleet = world.observe(now)
    leaving = fleet.limits.leave_s + 2 * fleet.limits.tick_s
    still = {slot.name for slot in fleet.slots if not slot.turning}
    due = [Return(x.name, "its deadline") for x in fleet.slots if x.until is not None and x.until <= now + leaving]
    wished = [_move(now, fleet, size, now + 2 * leaving) for size in policy.decide(now, fleet.pool())]
    chosen: list[Move] = []
    for move in [*due, *wished]:
        if move and move.slot in still:
            still.remove(move.slot)
            world.apply(move)
            chosen.append(move)
    return chosen


def _move(now: float, fleet: Fleet, size: Size, earliest: float) -> Move | None:
    """The one slot that a service's size moves: an idle one first, the newest loan back first; none while a slot turns, and no loan
    that is too short for both roles to leave."""
    held = [slot for slot in fleet.slots if slot.role == size.holder]
    if size.holder != SERVICE or any(slot.turning for slot in fleet.slots):
        return None
    rested = [slot for slot in fleet.slots if now - slot.since >= fleet.limits.switch_s or slot.idle]
    if size.nodes > len(held):
        free = sorted((slot for slot in rested if slot.role != size.holder and slot.until is None), key=lambda slot: not slot.idle)
        return Lend(free[0].name, size.holder, size.until, size.why) if free and size.until and size.until > earliest else None
    loans = [slot for slot in rested if slot.role == size.holder and slot.until is not None]
    return Return(loans[-1].name, size.why) if loans and size.nodes < len(held) else None
