"""The fleet: the ledger's promises, any policy's bounds in a simulated world, and one loan on real processes."""

import itertools
import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import toy_roles
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tenfold.fleet.demo.wave import PEAK, draw_arrivals, draw_days, forecast_peak
from tenfold.fleet.front.control import Front
from tenfold.fleet.ledger import Ledger
from tenfold.fleet.policies.lend import Lending
from tenfold.fleet.pools import Size
from tenfold.fleet.slots.hold import hold
from tenfold.fleet.slots.local import LocalWorld
from tenfold.fleet.slots.simulated import SimulatedWorld, simulate
from tenfold.fleet.slots.slots import Demand, Lend, Limits, Return
from tenfold.fleet.slots.tick import tick
from tenfold.launch.job import Job, open_launcher
from tenfold.spec.forecasts import LEVELS, read_forecasts
from tenfold.spec.plugins import load

LIMITS = Limits(leave_s=10, start_s=30, tick_s=1, switch_s=8)
DELAYS = st.lists(st.tuples(st.floats(0, 40), st.floats(0, 90)), min_size=1, max_size=20)
RATES = st.lists(st.floats(0, 60), min_size=1, max_size=12)


def fleet_of(chat, train):
    return {f"chat-{i}": "chat" for i in range(chat)} | {f"train-{i}": "train" for i in range(train)}


def run(owners, policy, rates, delays, seconds=600, ranking=None):
    """Simulate with demands of chat, and of ranking if given, that change every 50 s and are foreseen; returns the moves and the
    leases."""
    ledger = Ledger(":memory:", owners)

    def demand(of):
        return lambda now: Demand(of[min(int(now / 50), len(of) - 1)], tuple(of[int(now / 50) :]), 50, now % 50, 10)

    demands = {name: demand(of) for name, of in (("chat", rates), ("rank", ranking)) if of is not None}
    moves = simulate(SimulatedWorld(ledger, demands, LIMITS, itertools.cycle(delays)), policy, seconds, LIMITS.tick_s)
    return moves, ledger.leases()


class AnyPolicy:
    """Sizes by chance, with sense or without."""

    def __init__(self, seed):
        self.chance = random.Random(seed)

    def decide(self, now, pool):
        holders = self.chance.choices(
            ["chat", "rank", *pool.running, "nobody"], [5, 3, *[1] * len(pool.running), 1], k=self.chance.randrange(3)
        )
        return [Size(one, self.chance.randint(-1, pool.nodes + 1), now + self.chance.uniform(-50, 200)) for one in holders]


def assert_kept(owners, leases):
    """Each slot is always on exactly one lease, and a loan is over by its deadline."""
    for slot, owner in owners.items():
        own = [lease for lease in leases if lease.slot == slot]
        assert (
            own[0].role == owner
            and [lease.ended for lease in own[:-1]] == [lease.since for lease in own[1:]]
            and own[-1].ended is None
        )
        assert all((lease.until is None) == (lease.role == owner) == (i % 2 == 0) for i, lease in enumerate(own))
    ended = [(lease.ended, lease.until) for lease in leases if lease.until is not None and lease.ended is not None]
    assert all(end <= until for end, until in ended)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 2), st.integers(1, 3), DELAYS)
def test_whatever_a_policy_says_a_slot_has_one_role_and_a_loan_ends_by_its_deadline(seed, chat, train, delays):
    owners = fleet_of(chat, train)
    moves, leases = run(owners, AnyPolicy(seed), [0.0], delays, seconds=300)
    assert_kept(owners, leases)
    assert any(isinstance(move, Lend) for _, move in moves)


@settings(max_examples=20)
@given(RATES, RATES, st.integers(1, 3), DELAYS, st.integers(0, 2**32))
def test_two_services_share_the_slots_of_training_and_keep_their_own(rates, ranking, train, delays, seed):
    owners = fleet_of(1, train) | {"rank-0": "rank"}
    for policy in (Lending(), AnyPolicy(seed)):
        _, leases = run(owners, policy, rates, delays, seconds=400, ranking=ranking)
        assert_kept(owners, leases)
        assert {owners[lease.slot] for lease in leases if lease.until is not None} <= {"train"}


def test_one_slot_goes_to_chat_and_then_to_ranking_as_their_peaks_come():
    chat, ranking = [5, 15, 15, 5, 5, 5, 5, 5, 5], [5, 5, 5, 5, 5, 15, 15, 5, 5]
    owners = fleet_of(1, 1) | {"rank-0": "rank"}
    _, leases = run(owners, Lending(), chat, [(3.0, 5.0)], seconds=440, ranking=ranking)
    assert [lease.role for lease in leases if lease.slot == "train-0"] == ["train", "chat", "train", "rank", "train"]


@settings(max_examples=20)
@given(RATES, st.integers(1, 3), st.integers(0, 4), DELAYS)
def test_lend_keeps_the_bounds_and_does_not_flap(rates, chat, train, delays):
    owners = fleet_of(chat, train)
    moves, leases = run(owners, Lending(), rates, delays)
    assert_kept(owners, leases)
    for slot in owners:
        times = [(now, move) for now, move in moves if move.slot == slot]
        for (before, _), (after, move) in itertools.pairwise(times):
            assert after - before >= LIMITS.switch_s or move.why == "its deadline"


@settings(max_examples=20)
@given(st.floats(0, 60), st.integers(1, 3), st.integers(1, 4), DELAYS)
@example(37.0, 1, 4, [(0.0, 0.0)])
def test_a_demand_that_stays_leaves_the_roles_as_they_are(rate, chat, train, delays):
    moves, _ = run(fleet_of(chat, train), Lending(), [rate] * 40, delays)
    needed = next((n for n in range(chat, chat + train) if rate <= 0.9 * 10 * n), chat + train)
    assert [type(move) for _, move in moves] == [Lend] * (needed - chat)
    assert len({move.slot for _, move in moves}) == len(moves)


def test_a_foreseen_peak_is_lent_for_and_given_back_after():
    moves, leases = run(fleet_of(1, 1), Lending(), [5, 5, 15, 15, 5, 5, 5], [(3.0, 5.0)], seconds=340)
    assert [type(move) for _, move in moves] == [Lend, Return]
    lent, back = (now for now, _ in moves)
    assert lent < 100 and 200 <= back <= 255  # before the peak began, and once it was over
    assert leases[2].since == lent + 3 and leases[2].ended == back + 3


def test_a_policy_of_another_name_comes_by_the_same_door():
    assert load("policies", "lend") is Lending


def test_the_ledger_itself_refuses_a_second_lease_of_a_slot(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db", {"a": "train"}, now=1.0)
    ledger.turn("a", "chat", 20.0, "more demand", 5.0)
    other = sqlite3.connect(tmp_path / "ledger.db")
    with pytest.raises(sqlite3.IntegrityError):
        other.execute("INSERT INTO leases (slot, follows, role, since, why) VALUES ('a', 1, 'rank', 6.0, '')")
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
    assert max(usual) / min(usual) == pytest.approx(2.2, rel=0.03) and usual.index(max(usual)) == 12


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_slot_is_lent_to_two_services_and_returned_on_real_processes(tmp_path):
    """The work goes on where it was, no accepted request is lost, and each loan ends by its deadline with its price noted."""
    counting = toy_roles.Counting(tmp_path / "steps", 2 * toy_roles.STEPS)
    ledger = Ledger(tmp_path / "ledger.db", {"a": "chat", "b": "train", "c": "rank"}, time.time())
    fronts = {name: Front(tmp_path, f"front-{name}") for name in ("chat", "rank")}
    roles = {"chat": toy_roles.ToyChat(), "train": counting, "rank": toy_roles.ToyChat()}
    world = LocalWorld(tmp_path, ledger, roles, open_launcher("local"), fronts)
    world.limits = Limits(leave_s=5, tick_s=0.1, switch_s=0.5)
    rates = {"chat": 20.0, "rank": 1.0}
    world.demands = {name: lambda now, name=name: Demand(rates[name], (), 1, 0, 10) for name in fronts}
    for slot in ledger.owners:
        world.open(slot)
    try:
        with ThreadPoolExecutor(6) as pool:
            until(lambda: not any(slot.turning for slot in world.observe(time.time()).slots))
            asks = [lambda name=name: [fronts[name].ask({"stream": True}) for _ in range(8)] for name in ("chat", "rank")]
            asked = [pool.submit(ask) for ask in 3 * asks]
            while not counting.finished or not all(one.done() for one in asked) or ledger.of("b").until:
                tick(time.time(), world, Lending())
                if ledger.of("b").ready and (role := ledger.of("b").role) != "train":
                    rates |= {role: 1.0} | ({"rank": 20.0} if role == "chat" else {})
                time.sleep(0.1)
    finally:
        world.close()
        for front in fronts.values():
            front.end()
    answers = [answer for one in asked for answer in one.result()]
    assert len(answers) == 48 and not any(answer.lost for answer in answers)
    assert [int(step) for step in counting.path.read_text().split()] == list(range(2 * toy_roles.STEPS))
    loans = [lease for lease in ledger.leases() if lease.until is not None]
    assert [(loan.slot, loan.role) for loan in loans] == [("b", "chat"), ("b", "rank")]
    assert all(loan.ended <= loan.until and loan.lost_s > 0 for loan in loans)


def test_a_borrower_that_nobody_stops_is_gone_by_its_deadline_and_the_next_waits_for_it(tmp_path):
    launcher, lock = open_launcher("local"), tmp_path / "slot.lock"
    borrower, deadline = toy_roles.borrow_deaf(launcher, lock, tmp_path / "begun")
    owner = launcher.submit(Job("counting", function=hold, arguments=(lock, None, toy_roles.count, tmp_path / "steps")))
    time.sleep(deadline - 0.5 - time.monotonic())
    assert borrower.status() == "running" and not (tmp_path / "steps").exists()
    assert owner.future.result(timeout=120) is None and toy_roles.has_failed(borrower)
    launcher.close()


@pytest.mark.slow
def test_the_fleets_part_of_the_circle_goes_on_after_kills(tmp_path):
    """Killed while the first run trains, before, in and after the loan; the last call ends as one that was never killed."""
    folder = tmp_path / "fleet"
    command = [sys.executable, "-m", "tenfold", "fleet", "run", "--home", tmp_path]

    def leases():
        return Ledger(folder / "ledger.db").leases() if (folder / "ledger.db").exists() else []

    moments = [
        lambda: (folder / "undisturbed" / "run.jsonl").exists(),
        lambda: (folder / "measured.json").exists(),
        lambda: any(lease.until and lease.ready for lease in leases()),
        lambda: any(lease.until and lease.ended for lease in leases()),
    ]
    for moment in moments:
        fleet = subprocess.Popen(command, env=os.environ | {"TENFOLD_CIRCLE": "small"})
        until(lambda now=moment, fleet=fleet: now() or fleet.poll() is not None, 900)
        fleet.kill()
        fleet.wait()
    subprocess.run(command, env=os.environ | {"TENFOLD_CIRCLE": "small"}, check=True)
    numbers = json.loads((folder / "fleet.json").read_text())
    assert numbers["same_losses"] and numbers["steps"] == 200 and numbers["returned_in_time"]
    chat, answers = numbers["services"]["chat"], (folder / "answers-chat.jsonl").read_text().splitlines()
    ids = [json.loads(line)["request"] for line in answers if line.endswith("}")]
    assert sorted(ids) == list(range(chat["requests"])) and chat["accepted_lost"] == 0  # each answered once
    assert {one.forecast.kind for one in read_forecasts(tmp_path) if one.measured is not None} >= {"demand", "switch_seconds"}
