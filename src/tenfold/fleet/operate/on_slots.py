"""Operators' wishes as moves of slots, as far as deadlines, power caps and one lease for each slot allow, and the state of each
wish."""

from dataclasses import dataclass, field

from tenfold.fleet.slots.slots import DRAINED, Fleet, Lend, Move, Return, Slot, Wish

Word = tuple[str, str]  # the state of a wish, and a sentence about it
ORDER = ("done", "on its way", "cannot")


@dataclass
class Applied:
    """The moves, the state of each wish by its id, and the names of slots that wishes hold, which the policy may not move."""

    moves: list[Move] = field(default_factory=list)
    said: dict[int, Word] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)


def apply_to_slots(now: float, fleet: Fleet) -> Applied:
    """The moves that the open wishes ask for.

    A drain takes precedence over a loan, the later of two loans of a slot over the earlier one, and the lower of two caps over the
    higher one. A loan is refused where it is too short for two roles to leave.
    """
    found, wanted = Applied(), dict[str, Wish]()
    for wish in sorted(fleet.wishes, key=lambda wish: (wish.kind == "drain", wish.id)):
        wanted |= {slot.name: wish for slot in wish.slots(fleet.slots) if _can(fleet, wish, slot)}
    found.held = set(wanted)
    for wish in fleet.wishes:
        if wish.kind == "cap":
            _cap(fleet, wish, found)
        else:
            words = [_slot(now, fleet, wish, wanted.get(slot.name), slot, found) for slot in wish.slots(fleet.slots)]
            worst = max((ORDER.index(state) for state, _ in words), default=ORDER.index("cannot"))
            said = "; ".join(said for _, said in words) or f"there is no slot or owner {wish.target!r}"
            found.said[wish.id] = ORDER[worst], said
    room = {slot.site: fleet.room(slot.site) for slot in fleet.slots}
    for slot in fleet.slots:
        if slot.role == DRAINED and not slot.turning and slot.name not in wanted and room[slot.site] > 0:
            room[slot.site] -= 1
            found.moves.append(Return(slot.name, "no wish keeps it drained"))
    return found


def stay_drained(fleet: Fleet, slot: Slot) -> Lend | None:
    """The lease that keeps a drained slot drained beyond the end of its present lease; None where no open wish asks for that."""
    ends = [
        wish.until
        for wish in fleet.wishes
        if wish.slots([slot]) and (wish.kind == "drain" or (wish.kind == "cap" and fleet.room(slot.site) < 1))
    ]
    return Lend(slot.name, DRAINED, max(ends) + fleet.limits.leaving_s, "a wish keeps it drained") if ends else None


def _can(fleet: Fleet, wish: Wish, slot: Slot) -> bool:
    return wish.kind == "drain" or (wish.kind == "lend" and wish.role in (slot.owner, *fleet.demands))


def _slot(now: float, fleet: Fleet, wish: Wish, first: Wish | None, slot: Slot, found: Applied) -> Word:
    """Add the move that brings a slot to the role that a wish asks for, and return the state of the wish."""
    role = DRAINED if wish.kind == "drain" else wish.role or slot.owner
    leaving_s, until = fleet.limits.leaving_s, wish.until
    why = f"wish {wish.id} of {wish.who}" + (f": {wish.why}" if wish.why else "")
    ends = slot.until is not None and slot.until <= now + leaving_s < until - leaving_s
    if not _can(fleet, wish, slot):
        return "cannot", f"{slot.name} takes no {role}, which runs only in its own slots"
    if first is not None and first is not wish:
        return "cannot", f"{slot.name} is held by wish {first.id}"
    if role not in (slot.role, slot.owner, DRAINED) and until <= now + 2 * leaving_s:
        if wish.state == "done":
            return "done", f"{slot.name} goes back before the wish ends"
        return "cannot", f"{slot.name} needs {2 * leaving_s:.0f} s for both roles to leave, and wish {wish.id} ends before"
    if slot.turning:
        return "on its way", f"{slot.name} is switching to {slot.role}" + ("" if slot.role == role else " first")
    if slot.role == role and not (ends and role != DRAINED):
        return "done", f"{slot.name} is {role if role == DRAINED else f'held by {role}'}"
    if role == slot.owner:
        found.moves.append(Return(slot.name, why))
    elif role == DRAINED:
        found.moves.append(Lend(slot.name, role, until + leaving_s, why))
    elif not slot.busy and fleet.room(slot.site) < 1:
        return "cannot", f"{slot.name} is idle, and the power cap of {slot.site} allows no further busy slot"
    else:
        found.moves.append(Lend(slot.name, role, until, why))
    return "on its way", f"{slot.name} is switching to {role}"


def _cap(fleet: Fleet, wish: Wish, found: Applied) -> None:
    """Drain slots that train, the newest first, until the others are below the cap. Services are never stopped for a cap."""
    here = wish.slots(fleet.slots)
    if not here or not all(slot.watts for slot in here):
        sites = " and ".join(sorted({slot.site for slot in fleet.slots}))
        said = (
            "the power of a slot is not known: start the fleet with `tenfold fleet run --slot-watts`"
            if here
            else f"this fleet is in {sites}"
        )
        found.said[wish.id] = "cannot", said
        return
    chosen = {move.slot for move in found.moves}
    drained = {move.slot for move in found.moves if isinstance(move, Lend) and move.role == DRAINED}
    leaving = sum(slot.busy and (slot.name in drained or (slot.turning and slot.role == DRAINED)) for slot in here)
    over = max(0, -fleet.room(wish.target) - leaving)
    free = [slot for slot in here if slot.busy and not slot.turning and slot.role not in fleet.demands and slot.name not in chosen]
    for slot in sorted(free, key=lambda slot: -slot.since)[:over]:
        why = f"the power cap of wish {wish.id} of {wish.who}"
        found.moves.append(Lend(slot.name, DRAINED, wish.until + fleet.limits.leaving_s, why))
    busy = sum(slot.busy for slot in here)
    said = f"{busy} slots are busy and draw {busy * max(slot.watts for slot in here) / 1e6:.4g} MW"
    if over > len(free):
        said += f", {over - len(free)} too many: services and switching slots are not stopped for a cap"
    found.said[wish.id] = "cannot" if over > len(free) else "on its way" if over or leaving else "done", said
