"""What operators wish, as moves of slots: as far as deadlines, caps of power and one lease for each slot allow, and what to say."""

from dataclasses import dataclass, field

from tenfold.fleet.slots.slots import DRAINED, SERVICE, Fleet, Lend, Move, Return, Slot, Wish

Word = tuple[str, str]  # a state and a sentence
ORDER = ("done", "on its way", "cannot")


@dataclass
class Obeyed:
    """Moves in the order of their weight, the last word on each wish, and the slots that wishes hold, which no policy moves."""

    moves: list[Move] = field(default_factory=list)
    said: dict[int, Word] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)


def obey(now: float, fleet: Fleet) -> Obeyed:
    """A drain comes before a loan, of two loans of a slot the later wish holds, of two caps the lower one. No loan is made that has
    no time for two roles to leave."""
    found, wanted = Obeyed(), dict[str, Wish]()
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
    """A drained slot stays so beyond the end of its lease where a wish has no end yet that came later."""
    ends = [
        wish.until
        for wish in fleet.wishes
        if wish.slots([slot]) and (wish.kind == "drain" or (wish.kind == "cap" and fleet.room(slot.site) < 1))
    ]
    return Lend(slot.name, DRAINED, max(ends) + fleet.limits.leaving_s, "a wish keeps it drained") if ends else None


def _can(fleet: Fleet, wish: Wish, slot: Slot) -> bool:
    return wish.kind == "drain" or (wish.kind == "lend" and wish.role in (slot.owner, *fleet.roles))


def _slot(now: float, fleet: Fleet, wish: Wish, first: Wish | None, slot: Slot, found: Obeyed) -> Word:
    """Bring a slot to the role that a wish wants there, and say how far that is."""
    role = DRAINED if wish.kind == "drain" else wish.role or slot.owner
    leaving_s, until = fleet.limits.leaving_s, wish.until
    why = f"wish {wish.id} of {wish.who}" + (f": {wish.why}" if wish.why else "")
    ends = slot.until is not None and slot.until <= now + leaving_s < until - leaving_s
    if not _can(fleet, wish, slot):
        return "cannot", f"{slot.name} takes no {role}, which works in its own slots only"
    if first is not None and first is not wish:
        return "cannot", f"{slot.name} is held by wish {first.id}"
    if role not in (slot.role, slot.owner, DRAINED) and until <= now + 2 * leaving_s:
        if wish.state == "done":
            return "done", f"{slot.name} goes back before the wish ends"
        return "cannot", f"{slot.name} needs {2 * leaving_s:.0f} s for both roles to leave, and wish {wish.id} ends before"
    if slot.turning:
        return "on its way", f"{slot.name} turns to {slot.role}" + ("" if slot.role == role else " first")
    if slot.role == role and not (ends and role != DRAINED):
        return "done", f"{slot.name} is {role if role == DRAINED else f'with {role}'}"
    if role == slot.owner:
        found.moves.append(Return(slot.name, why))
    elif role == DRAINED:
        found.moves.append(Lend(slot.name, role, until + leaving_s, why))
    elif not slot.busy and fleet.room(slot.site) < 1:
        return "cannot", f"{slot.name} does not work, and the power cap of {slot.site} lets no further slot work"
    else:
        found.moves.append(Lend(slot.name, role, until, why))
    return "on its way", f"{slot.name} goes to {role}"


def _cap(fleet: Fleet, wish: Wish, found: Obeyed) -> None:
    """Drain slots of training, the newest first, until the rest is under the cap: services are not stopped for it."""
    here = wish.slots(fleet.slots)
    if not here or not all(slot.watts for slot in here):
        sites = " and ".join(sorted({slot.site for slot in fleet.slots}))
        said = "nobody said what a slot takes: `tenfold fleet run --slot-watts`" if here else f"this fleet is in {sites}"
        found.said[wish.id] = "cannot", said
        return
    chosen = {move.slot for move in found.moves}
    drained = {move.slot for move in found.moves if isinstance(move, Lend) and move.role == DRAINED}
    leaving = sum(slot.busy and (slot.name in drained or (slot.turning and slot.role == DRAINED)) for slot in here)
    over = max(0, -fleet.room(wish.target) - leaving)
    free = [slot for slot in here if slot.busy and not slot.turning and slot.role != SERVICE and slot.name not in chosen]
    for slot in sorted(free, key=lambda slot: -slot.since)[:over]:
        why = f"the power cap of wish {wish.id} of {wish.who}"
        found.moves.append(Lend(slot.name, DRAINED, wish.until + fleet.limits.leaving_s, why))
    busy = sum(slot.busy for slot in here)
    said = f"{busy} slots work, with {busy * max(slot.watts for slot in here) / 1e6:.4g} MW"
    if over > len(free):
        said += f", {over - len(free)} too many: no service and no role that turns is stopped for a cap"
    found.said[wish.id] = "cannot" if over > len(free) else "on its way" if over or leaving else "done", said
