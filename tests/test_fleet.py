"""The fleet: the ledger's promises, any policy's bounds in a simulated world, and one loan on real processes."""

import itertools
import random
import sqlite3
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.fleet.fleet import Demand, Lend, Limits, Return
from tenfold.fleet.ledger import Ledger
from tenfold.fleet.lend import LendByThreshold
from tenfold.fleet.simulated import SimulatedWorld, simulate
from tenfold.fleet.wave import PEAK, draw_arrivals, draw_days, forecast_peak
from tenfold.spec.forecasts import LEVELS
from tenfold.spec.plugins import load

LIMITS = Limits(leave_s=10, start_s=30, tick_s=1, switch_s=8)
DELAYS = st.lists(st.tuples(st.floats(0, 40), st.floats(0, 90)), min_size=1, max_size=20)
RATES = st.lists(st.floats(0, 60), min_size=1, max_size=12)


def fleet_of(chat, train):
    return {f"chat-{i}": "chat" for i in range(chat)} | {f"train-{i}": "train" for i in range(train)}


def run(owners, policy, rates, delays, seconds=600):
    """Simulate with a demand that changes every 50 s and is foreseen; returns the moves and the ledger."""
    ledger = Ledger(":memory:", owners)

    def demand(now):
        first = int(now / 50)
        return Demand(rates[min(first, len(rates) - 1)], tuple(rates[first:]), 50, now % 50, 10)

    moves = simulate(SimulatedWorld(ledger, demand, LIMITS, itertools.cycle(delays)), policy, seconds, LIMITS.tick_s)
    return moves, ledger.leases()


class AnyPolicy:
    """Moves by chance, with sense or without."""

    def __init__(self, seed):
        self.chance = random.Random(seed)

    def decide(self, now, fleet):
        moves = []
        for slot in self.chance.choices(fleet.slots, k=self.chance.randrange(3)):
            lend = Lend(slot.name, "chat", now + self.chance.uniform(-50, 200), "")
            moves.append(self.chance.choice([lend, Return(slot.name, "")]))
        return moves


def assert_kept(owners, leases):
    """Each slot is always on exactly one lease, and a loan is over by its deadline."""
    for slot, owner in owners.items():
        own = [lease for lease in leases if lease.slot == slot]
        assert own[0].role == owner and [lease.ended for lease in own[:-1]] == [lease.since for lease in own[1:]] and own[-1].ended is None
        assert all((lease.until is None) == (lease.role == owner) == (i % 2 == 0) for i, lease in enumerate(own))
    ended = [(lease.ended, lease.until) for lease in leases if lease.until is not None and lease.ended is not None]
    assert all(end <= until for end, until in ended)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 2), st.integers(1, 3), DELAYS)
def test_whatever_a_policy_says_a_slot_has_one_role_and_a_loan_ends_by_its_deadline(seed, chat, train, delays):
    owners = fleet_of(chat, train)
    _, leases = run(owners, AnyPolicy(seed), [0.0], delays, seconds=300)
    assert_kept(owners, leases)


@settings(max_examples=40)
@given(RATES, st.integers(1, 3), st.integers(0, 4), DELAYS)
def test_lend_keeps_the_bounds_and_does_not_flap(rates, chat, train, delays):
    owners = fleet_of(chat, train)
    moves, leases = run(owners, LendByThreshold(), rates, delays)
    assert_kept(owners, leases)
    for slot in owners:
        times = [(now, move) for now, move in moves if move.slot == slot]
        for (before, _), (after, move) in itertools.pairwise(times):
            assert after - before >= LIMITS.switch_s or move.why == "its deadline"


@settings(max_examples=40)
@given(st.floats(0, 60), st.integers(1, 3), st.integers(1, 4), DELAYS)
def test_a_demand_that_stays_leaves_the_roles_as_they_are(rate, chat, train, delays):
    moves, _ = run(fleet_of(chat, train), LendByThreshold(), [rate] * 40, delays)
    needed = next((n for n in range(chat, chat + train) if rate <= 0.9 * 10 * n), chat + train)
    assert [type(move) for _, move in moves] == [Lend] * (needed - chat)
    assert len({move.slot for _, move in moves}) == len(moves)


def test_a_foreseen_peak_is_lent_for_and_given_back_after():
    moves, leases = run(fleet_of(1, 1), LendByThreshold(), [5, 5, 15, 15, 5, 5, 5], [(3.0, 5.0)], seconds=340)
    assert [type(move) for _, move in moves] == [Lend, Return]
    lent, back = (now for now, _ in moves)
    assert lent < 100 and 200 <= back <= 255  # before the peak began, and once it was over
    assert leases[2].since == lent + 3 and leases[2].ended == back + 3


def test_a_policy_of_another_name_comes_by_the_same_door():
    assert load("policies", "lend") is LendByThreshold


def test_the_ledger_itself_refuses_a_second_lease_of_a_slot(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db", {"a": "train"}, now=1.0)
    ledger.turn("a", "chat", 20.0, "more demand", 5.0)
    other = sqlite3.connect(tmp_path / "ledger.db")
    with pytest.raises(sqlite3.IntegrityError):
        other.execute("INSERT INTO leases (slot, role, since, why) VALUES ('a', 'rank', 6.0, '')")
    other.close()
    ledger.close()
    again = Ledger(tmp_path / "ledger.db", {"a": "train"}, now=9.0)
    assert [(x.role, x.since, x.until, x.ended) for x in again.leases()] == [("train", 1.0, None, 5.0), ("chat", 5.0, 20.0, None)]


WRITER = """
import sys
from tenfold.fleet.ledger import Ledger
ledger = Ledger(sys.argv[1], {"a": "train", "b": "chat"})
number = len(ledger.leases())
while True:
    for slot in "ab":
        number += 1
        ledger.turn(slot, f"role-{number}", None, "", float(number))
        print(slot, number, flush=True)
"""


def test_a_killed_writer_loses_no_turn_that_it_had_made(tmp_path):
    told = {}
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "ledger.db"], stdout=subprocess.PIPE, text=True)
        for line in itertools.islice(writer.stdout, 15):
            slot, number = line.split()
            told[slot] = int(number)
        writer.kill()
        left = writer.stdout.read().split("\n")
        told |= {line.split()[0]: int(line.split()[1]) for line in left[:-1]}
        writer.wait()
        ledger = Ledger(tmp_path / "ledger.db")
        leases, current = ledger.leases(), {lease.slot: lease for lease in ledger.leases(current=True)}
        ledger.close()
        assert [lease.id for lease in leases] == list(range(1, len(leases) + 1)) and set(current) == {"a", "b"}
        assert all(int(current[slot].role.removeprefix("role-")) >= number for slot, number in told.items())


def test_the_forecast_of_a_peak_holds_as_often_as_it_says():
    inside = []
    for seed in range(300):
        days = draw_days(8, 6.0, seed)
        quantiles = forecast_peak(days[:-1], 2.0)
        came = sum(PEAK.start * 2.0 <= t < PEAK.stop * 2.0 for t in draw_arrivals(days[-1], 2.0, seed))
        inside.append(quantiles[LEVELS.index(0.1)] <= came <= quantiles[LEVELS.index(0.9)])
    assert 0.65 < sum(inside) / len(inside) < 0.9


def test_a_days_demand_swings_as_it_is_said():
    usual = [sum(hour) / 500 for hour in zip(*draw_days(500, 10.0, 0), strict=True)]
    assert max(usual) / min(usual) == pytest.approx(2.2, rel=0.03) and usual.index(max(usual)) == 10
