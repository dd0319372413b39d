"""What operators wish of a fleet: no wish breaks what holds under any policy, and each is obeyed or answered."""

import itertools
import random

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_fleet import DELAYS, LIMITS, AnyPolicy, fleet_of

from tenfold.fleet.ledger import Ledger
from tenfold.fleet.policies.lend import Lending
from tenfold.fleet.slots.simulated import SimulatedWorld
from tenfold.fleet.slots.slots import DRAINED, Demand, Wish
from tenfold.fleet.slots.tick import tick

SECONDS, WATTS = 200, 100.0
WITHOUT_SHRINKING = [Phase.explicit, Phase.reuse, Phase.generate]  # a case is a whole simulation


def chance_wish(chance, owners, now):
    kind = chance.choice(["lend", "drain", "cap"])
    target = "local" if kind == "cap" else chance.choice([*owners, *owners.values(), "nobody"])
    until = now + chance.choice([chance.uniform(1, 60), chance.uniform(60, 300)])
    role = chance.choice(["chat", "train", "rank"]) if kind == "lend" else None
    mw = chance.randint(0, len(owners)) * WATTS / 1e6 if kind == "cap" else None
    return Wish(0, kind, target, until, role, mw, "op", "", now)


def holds(wish, slot):
    return wish.kind == "drain" or (wish.kind == "lend" and wish.role in ("chat", slot.owner))


def assert_kept(owners, leases):
    """Each slot is on exactly one lease, begins with its owner, and each loan is over by its deadline."""
    for slot, owner in owners.items():
        own = [lease for lease in leases if lease.slot == slot]
        assert own[0].role == owner and [x.ended for x in own[:-1]] == [x.since for x in own[1:]] and own[-1].ended is None
        assert all((lease.until is None) == (lease.role == owner) for lease in own)
        assert all(lease.ended <= lease.until for lease in own if lease.until is not None and lease.ended is not None)


@settings(max_examples=15, deadline=None, phases=WITHOUT_SHRINKING)
@given(st.integers(0, 2**32), st.integers(1, 2), st.integers(1, 3), DELAYS)
def test_wishes_by_chance_break_no_invariant(seed, chat, train, delays):
    """One lease for each slot, loans back in time; no move makes work what a cap forbids; who is held is moved by no policy."""
    owners, chance = fleet_of(chat, train), random.Random(seed)
    ledger = Ledger(":memory:", owners)
    demand = [chance.uniform(0, 60) for _ in range(SECONDS // 50 + 1)]
    world = SimulatedWorld(
        ledger, {"chat": lambda now: Demand(demand[int(now / 50)], tuple(demand[int(now / 50) :]), 50, now % 50, 10)}, LIMITS,
        itertools.cycle(delays),
    )  # fmt: skip
    world.slot_w, made = WATTS, []
    policy = chance.choice([AnyPolicy(seed), Lending()])
    for now in range(SECONDS):
        if chance.random() < 0.03:
            made.append(world.wishes.add(chance_wish(chance, owners, float(now))))
        if made and chance.random() < 0.01:
            world.wishes.answer({chance.choice(made).id: ("withdrawn", "")}, now)
        before = world.observe(now)
        moves = tick(now, world, policy)
        room, slots = before.room("local"), {slot.name: slot for slot in before.slots}
        more = sum(not slots[move.slot].busy and getattr(move, "role", "") != DRAINED for move in moves)
        assert more <= max(0, room)
        assert len({move.slot for move in moves}) == len(moves)
        held = {slot.name for wish in before.wishes for slot in wish.slots(before.slots) if holds(wish, slot)}
        assert all("wish" in move.why or move.why == "its deadline" for move in moves if move.slot in held)
        after = world.observe(now)
        open_now = after.wishes
        assert all(wish.state in ("done", "on its way", "cannot") and wish.said for wish in open_now)
        drains = [wish for wish in open_now if wish.kind == "drain"]
        for slot in after.slots:
            drained = any(wish.slots([slot]) for wish in drains)
            assert not drained or slot.role == DRAINED or slot.turning
        caps = [wish for wish in open_now if wish.kind == "cap"]
        if caps and after.room("local") < 0:
            assert min(caps, key=lambda wish: wish.mw).state != "done"
    assert_kept(owners, ledger.leases())


def simulated(owners, wishes, seconds=200, watts=WATTS):
    """A quiet fleet in which operators make `wishes` at their times."""
    ledger = Ledger(":memory:", owners)
    world = SimulatedWorld(ledger, {"chat": lambda now: Demand(5.0, (5.0,) * 20, 50, 0, 10)}, LIMITS, itertools.cycle([(2.0, 5.0)]))
    world.slot_w, seen, made = watts, [], []
    for now in range(seconds):
        made += [world.wishes.add(wish) for wish in wishes if wish.at == now]
        tick(now, world, Lending())
        seen.append({slot.name: slot.role for slot in world.observe(now).slots})
    return seen, [world.wishes.of(wish.id) for wish in made], ledger.leases()


def test_a_loan_that_an_operator_wishes_is_made_at_once_and_is_back_by_its_end():
    seen, (wish,), leases = simulated(fleet_of(1, 2), [Wish(0, "lend", "train-0", 150.0, "chat", at=10, who="ann", why="a launch")])
    assert all(now["train-0"] == "chat" for now in seen[10:130]) and seen[-1]["train-0"] == "train" and wish.state == "done"
    loan = next(lease for lease in leases if lease.until)
    assert loan.ended <= 150 and "ann" in loan.why and "a launch" in loan.why
    assert all(now["train-1"] == "train" for now in seen)


def test_a_wish_that_cannot_be_obeyed_says_why():
    wishes = [
        Wish(0, "lend", "train-0", 20.0, "chat", at=10), Wish(0, "lend", "chat-0", 150.0, "train", at=10),
        Wish(0, "cap", "tx", 150.0, mw=1.0, at=10), Wish(0, "drain", "train-1", 150.0, at=10),
        Wish(0, "lend", "train-1", 150.0, "chat", at=10),
    ]  # fmt: skip
    seen, (soon, train, site, drain, other), _ = simulated(fleet_of(1, 2), wishes, seconds=100)
    assert "24 s for both roles to leave" in soon.said and "takes no train" in train.said and "this fleet is in local" in site.said
    assert drain.state == "done" and seen[-1]["train-1"] == DRAINED and other.said == f"train-1 is held by wish {drain.id}"
    assert {wish.state for wish in (soon, train, site, other)} == {"cannot"}
    _, (unknown,), _ = simulated(fleet_of(1, 1), [Wish(0, "cap", "local", 50.0, mw=1.0, at=1)], seconds=10, watts=0.0)
    assert "--slot-watts" in unknown.said


def test_a_cap_of_power_stops_training_and_lets_it_go_on_after():
    cap = Wish(0, "cap", "local", 150.0, mw=2 * WATTS / 1e6, at=10, who="ann")
    seen, (wish,), _ = simulated(fleet_of(1, 3), [cap], seconds=200)
    working = [sum(role != DRAINED for role in now.values()) for now in seen]
    assert (
        set(working[15:150]) == {2} and working[-1] == 4 and all(now["chat-0"] == "chat" for now in seen) and wish.state == "done"
    )
    _, (wish,), _ = simulated(fleet_of(3, 1), [cap], seconds=100)
    assert wish.state == "cannot" and "1 too many" in wish.said


def test_a_withdrawn_drain_gives_the_slot_back():
    ledger = Ledger(":memory:", fleet_of(1, 1))
    world = SimulatedWorld(ledger, {"chat": lambda now: Demand(1.0, (1.0,), 50, 0, 10)}, LIMITS, itertools.cycle([(2.0, 5.0)]))
    wish = world.wishes.add(Wish(0, "drain", "train-0", 1e6, at=1.0))
    for now in range(40):
        if now == 20:
            world.wishes.answer({wish.id: ("withdrawn", "by ann")}, now)
        tick(now, world, Lending())
    assert [lease.role for lease in ledger.leases() if lease.slot == "train-0"] == ["train", DRAINED, "train"]
