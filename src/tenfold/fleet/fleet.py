"""What a policy sees and may do: slots, who holds each and until when, the demand for chat, and moves.

A world shows the fleet and carries moves out; a policy chooses them. The same policy decides for a simulated and a live world.
Policies are entry points of the group `tenfold.policies`. Times are in seconds since the epoch, in a simulation since its start.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol


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

    def within(self, seconds: float) -> float:
        """The highest rate from now to so many seconds ahead."""
        return max(self.now, *self.expected[: int((self.into_s + seconds) / self.bin_s) + 1], 0.0)


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


class Policy(Protocol):
    """Chooses moves from nothing but what it is shown."""

    def decide(self, now: float, fleet: Fleet) -> list[Move]: ...


class World(Protocol):
    """A fleet, simulated or live. `apply` begins a move and does not wait for its end."""

    def observe(self, now: float) -> Fleet: ...

    def apply(self, move: Move) -> None: ...


def tick(now: float, world: World, policy: Policy) -> list[Move]:
    """Look, decide and apply once. A loan that is due ends whatever the policy says; a move that may not be is left out."""
    fleet = world.observe(now)
    leaving = fleet.limits.leave_s + 2 * fleet.limits.tick_s
    still = {slot.name: slot for slot in fleet.slots if not slot.turning}
    due: list[Move] = [Return(x.name, "its deadline") for x in still.values() if x.until is not None and x.until <= now + leaving]
    chosen: list[Move] = []
    for move in [*due, *policy.decide(now, fleet)]:
        if move.slot in still and _allowed(still[move.slot], move, now + 2 * leaving):
            del still[move.slot]
            world.apply(move)
            chosen.append(move)
    return chosen


def _allowed(slot: Slot, move: Move, earliest: float) -> bool:
    """A loan is of an owner's slot to another role, and long enough for both to leave."""
    if isinstance(move, Return):
        return slot.until is not None
    return slot.until is None and move.role != slot.owner and move.until > earliest
