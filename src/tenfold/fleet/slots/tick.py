"""One iteration of the control loop over a fleet of slots: operators' wishes first, then loans that are due, then the policy.

A world reports the fleet and carries moves out. A policy sees it as a pool of nodes (`pools.py`) and decides sizes; the slots that
move for these are chosen here. The same policy decides for a simulated and a live world. Policies are entry points of the group
`tenfold.policies`.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from tenfold.fleet.operate.on_slots import Word, apply_to_slots, stay_drained
from tenfold.fleet.pools import Policy, Size
from tenfold.fleet.slots.slots import DRAINED, Fleet, Lend, Move, Return, Slot


class World(Protocol):
    """A fleet, simulated or live. `observe` reports it. `apply` begins a move and does not wait for its end."""

    def observe(self, now: float) -> Fleet: ...

    def apply(self, move: Move) -> None: ...

    def answer(self, said: Mapping[int, Word], now: float) -> None:
        """Write the state of wishes, by their ids."""
        ...


def tick(now: float, world: World, policy: Policy) -> list[Move]:
    """Observe, decide and apply once; returns the moves that were begun.

    Wishes take precedence over the policy. A loan that is due ends whatever either of them says. A size that cannot be carried out
    moves nothing, and no move makes more slots busy than the power caps allow.
    """
    fleet = world.observe(now)
    leaving_s, slots = fleet.limits.leaving_s, {slot.name: slot for slot in fleet.slots}
    room = {slot.site: fleet.room(slot.site) for slot in fleet.slots}
    wished = apply_to_slots(now, fleet)
    due = [_end(fleet, slot) for slot in fleet.slots if slot.until is not None and slot.until <= now + leaving_s]
    rested = [
        slot
        for slot in fleet.slots
        if slot.name not in wished.held
        and (slot.busy or room[slot.site] > 0)
        and (now - slot.since >= fleet.limits.switch_s or slot.idle)
    ]
    sized = [_move(fleet, rested, size, now + 2 * leaving_s) for size in policy.decide(now, fleet.pool())]
    chosen: list[Move] = []
    for move in [*wished.moves, *due, *sized]:
        if move is None or (slot := slots.get(move.slot)) is None or slot.turning:
            continue
        more = not slot.busy and not (isinstance(move, Lend) and move.role == DRAINED)
        if more and room[slot.site] < 1:
            continue
        room[slot.site] -= more
        del slots[move.slot]
        world.apply(move)
        chosen.append(move)
    world.answer(wished.said, now)
    return chosen


def _end(fleet: Fleet, slot: Slot) -> Move:
    """The move that ends a loan that is due."""
    stays = stay_drained(fleet, slot) if slot.role == DRAINED else None
    return stays or Return(slot.name, "its deadline")


def _move(fleet: Fleet, rested: Sequence[Slot], size: Size, earliest: float) -> Move | None:
    """The move of one of the `rested` slots towards a service's size: an idle slot is lent first, the newest loan is returned
    first. Services do not lend slots to each other.

    None while any slot is switching, and where a loan would end before `earliest`, too soon for both roles to leave.
    """
    held = [slot for slot in fleet.slots if slot.role == size.holder]
    if size.holder not in fleet.demands or any(slot.turning for slot in fleet.slots):
        return None
    if size.nodes > len(held):
        free = sorted(
            (slot for slot in rested if slot.role not in fleet.demands and slot.until is None), key=lambda slot: not slot.idle
        )
        return Lend(free[0].name, size.holder, size.until, size.why) if free and size.until and size.until > earliest else None
    loans = [slot for slot in rested if slot.role == size.holder and slot.until is not None]
    return Return(loans[-1].name, size.why) if loans and size.nodes < len(held) else None
