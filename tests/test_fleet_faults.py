"""Faults of a live fleet with real processes: operators' commands, workers killed and hung, controllers killed and stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
import toy_controller
import toy_roles

from tenfold.fleet.clock import Clock
from tenfold.fleet.front.control import Front
from tenfold.fleet.front.file import lock_of
from tenfold.fleet.ledger import Ledger
from tenfold.fleet.operate.operate import read_until, status, wish
from tenfold.fleet.slots.hold import hold
from tenfold.fleet.slots.local import LocalWorld
from tenfold.fleet.slots.slots import DRAINED, Lend, Limits, Wish
from tenfold.launch.job import Job, open_launcher
from tenfold.serve.start import answers
from tenfold.spec import files
from tenfold.spec.errors import TenfoldError


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextmanager
def controller(home):
    """A controller's process, which ends with the block."""
    running = subprocess.Popen([sys.executable, toy_controller.__file__, home])
    try:
        yield running
    finally:
        (home / "stop").touch()
        running.send_signal(signal.SIGCONT)
        running.wait(60)
        (home / "stop").unlink()


def holder(home, slot):
    """The process group that has the slot."""
    try:
        return json.loads((home / "fleet" / f"{slot}.lock").read_text())["group"]
    except (OSError, ValueError):
        return None


def role_of(home, slot):
    return next(x["role"] for x in status(home)["slots"] if x["slot"] == slot)


def steps(home):
    return [int(step) for step in (home / "steps").read_text().split()] if (home / "steps").exists() else []


def command(home, *words):
    words = [sys.executable, "-m", "tenfold", "fleet", *map(str, words), "--home", home]
    return subprocess.run(words, capture_output=True, text=True)


def test_commands_reach_a_running_controller_and_wait_for_the_next_where_none_runs(tmp_path):
    assert "There is no ledger" in command(tmp_path, "status").stderr
    with controller(tmp_path):
        until(lambda: steps(tmp_path))
        lent = wish(tmp_path, Wish(0, "lend", "b", time.time() + 3600, "chat", why="a launch"))
        assert lent.state != "cannot" and lent.who
        until(lambda: role_of(tmp_path, "b") == "chat")
        said = json.loads(command(tmp_path, "withdraw", lent.id, "--json").stdout)
        assert said["state"] == "withdrawn"
        until(lambda: role_of(tmp_path, "b") == "train")
        capped = wish(tmp_path, Wish(0, "cap", "local", time.time() + 3600, mw=50e-6))
        until(lambda: role_of(tmp_path, "b") == DRAINED)
        at = len(steps(tmp_path))
        time.sleep(0.5)
        assert len(steps(tmp_path)) == at and role_of(tmp_path, "a") == "chat"
        command(tmp_path, "withdraw", capped.id)
        until(lambda: len(steps(tmp_path)) > at)
        shown = command(tmp_path, "status").stdout
        assert "No controller" not in shown and "price of return" in shown
    assert "No controller runs" in command(tmp_path, "drain", "b", "--why", "a new fan").stdout
    assert "did you mean" in command(tmp_path, "drain", "trai").stderr
    now = status(tmp_path)
    assert not now["controller"] and now["wishes"][0]["state"] == "waits" and now["slots"][1]["price_s"] > 0
    with controller(tmp_path):
        until(lambda: role_of(tmp_path, "b") == DRAINED)
    assert steps(tmp_path) == list(range(len(steps(tmp_path))))


def test_a_time_of_the_day_is_the_next_that_comes():
    now = datetime.fromisoformat("2027-03-31T17:00").astimezone()
    assert read_until("18:00", now) - now.timestamp() == 3600 and read_until("16:00", now) - now.timestamp() == 23 * 3600
    assert read_until("2027-04-01T17:00", now) - now.timestamp() == 24 * 3600
    for wrong in ("six", "25:00", "2027-03-31T16:00"):
        with pytest.raises(TenfoldError):
            read_until(wrong, now)


def test_a_worker_that_is_killed_or_hangs_is_started_again_and_goes_on(tmp_path):
    with controller(tmp_path):
        for fault in (signal.SIGKILL, signal.SIGSTOP):
            until(lambda: len(steps(tmp_path)) > 3)
            first, at = holder(tmp_path, "b"), len(steps(tmp_path))
            os.killpg(first, fault)
            until(lambda first=first: holder(tmp_path, "b") not in (first, None))
            until(lambda at=at: len(steps(tmp_path)) > at + 3)
    assert steps(tmp_path) == list(range(len(steps(tmp_path))))


def test_a_front_that_is_killed_is_started_again_at_its_address_and_ends_with_the_fleet(tmp_path):
    file = tmp_path / "fleet" / "front.json"

    def process():
        return (files.holder(lock_of(file)) or {}).get("process")

    with controller(tmp_path):
        until(process)
        first, url = process(), json.loads(file.read_text())["url"]
        until(lambda: answers(url))
        os.kill(first, signal.SIGKILL)
        until(lambda: process() not in (first, None))
        until(lambda: answers(url))
    assert process() is None


class NeverReady(toy_roles.ToyChat):
    def is_ready(self, url, starts):
        return False


def test_a_borrower_that_does_not_come_to_work_has_failed_long_before_its_loan_is_over(tmp_path):
    ledger, front = Ledger(tmp_path / "ledger.db", {"b": "train"}, time.time()), Front(tmp_path)
    roles = {"chat": NeverReady(), "train": toy_roles.Counting(tmp_path / "steps")}
    world = LocalWorld(tmp_path, ledger, roles, open_launcher("local"), {"chat": front})
    world.limits = Limits(leave_s=2, start_s=0.5, tick_s=0.1, restarts=1)
    world.apply(Lend("b", "chat", world.clock() + 3600, "a launch"))
    with pytest.raises(TenfoldError, match="chat in b failed 2 times"):
        until(lambda: world.observe(world.clock()) is None)
    world.close()
    front.end()


def test_a_controller_that_is_killed_at_any_moment_goes_on(tmp_path):
    """Also in the midst of turns; each slot stays on one lease, no step is done twice, and what was wished is not forgotten."""
    chance = random.Random(0)
    for number in range(4):
        with controller(tmp_path) as running:
            until((tmp_path / "fleet" / "ledger.db").exists)
            if number:
                wish(tmp_path, Wish(0, "lend" if number % 2 else "drain", "b", time.time() + 3600, "chat" if number % 2 else None))
            time.sleep(chance.uniform(0, 1.5))
            running.kill()
            running.wait()
    with controller(tmp_path):
        until(lambda: role_of(tmp_path, "b") == DRAINED)
    leases = Ledger(tmp_path / "fleet" / "ledger.db").leases()
    for slot in toy_controller.OWNERS:
        own = [lease for lease in leases if lease.slot == slot]
        assert [x.ended for x in own[:-1]] == [x.since for x in own[1:]] and own[-1].ended is None
    assert steps(tmp_path) == list(range(len(steps(tmp_path))))


def test_a_borrower_without_its_controller_is_gone_by_its_deadline_and_the_fleet_goes_on_after(tmp_path):
    with controller(tmp_path) as running:
        until(lambda: steps(tmp_path))
        end = time.time() + 9
        wish(tmp_path, Wish(0, "lend", "b", end, "chat"))
        until(lambda: role_of(tmp_path, "b") == "chat" or time.time() > end)
        running.send_signal(signal.SIGSTOP)  # it tells nobody anything
        at = len(steps(tmp_path))
        time.sleep(max(0.0, end - time.time()) + 1)
        lock = tmp_path / "fleet" / "b.lock"
        free = open_launcher("local")
        assert free.submit(Job("next", function=hold, arguments=(lock, None, int))).future.result(timeout=60) == 0
        free.close()
        running.send_signal(signal.SIGCONT)
        until(lambda: len(steps(tmp_path)) > at)
    loans = [lease for lease in Ledger(tmp_path / "fleet" / "ledger.db").leases() if lease.until]
    assert all(loan.ended <= loan.until for loan in loans)


def test_a_stopped_holder_is_ended_once_its_deadline_is_over(tmp_path):
    launcher, lock = open_launcher("local"), tmp_path / "slot.lock"
    stopped, end = toy_roles.borrow_deaf(launcher, lock, tmp_path / "begun")
    os.killpg(int(stopped.id), signal.SIGSTOP)
    after = launcher.submit(Job("next", function=hold, arguments=(lock, None, time.monotonic)))
    assert after.future.result(timeout=120) >= end
    assert toy_roles.has_failed(stopped)
    launcher.close()


JUMP = """
import sys, time
from pathlib import Path
from tenfold.fleet.clock import Clock
real = time.time
before = Clock(Path(sys.argv[1]))
one = before()
time.time = lambda: real() + float(sys.argv[2])
again = Clock(Path(sys.argv[1]))
print(abs(again() - one), again.ahead_s())
"""


@pytest.mark.skipif(not Path("/proc/sys/kernel/random/boot_id").exists(), reason="the system says nothing of its boots")
@pytest.mark.parametrize("jump", [3600, -3600])
def test_the_fleets_clock_goes_on_evenly_where_the_wall_jumps(tmp_path, jump):
    run = subprocess.run(
        [sys.executable, "-c", JUMP, tmp_path / "clock.json", str(jump)], capture_output=True, text=True, check=True
    )
    passed, ahead = map(float, run.stdout.split())
    assert passed < 60 and ahead == pytest.approx(-jump, abs=1)
    assert Clock(tmp_path / "clock.json").ahead_s() == 0
