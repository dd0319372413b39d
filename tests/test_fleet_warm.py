"""Warm switches: workers that stay in their slots asleep, on real processes with real kills; and a run that sleeps between steps."""

import json
import os
import shutil
import signal
import sysconfig
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import toy_roles
from run_configs import run_config

from tenfold.fleet.front.control import Front
from tenfold.fleet.ledger import Ledger
from tenfold.fleet.slots.hold import hold
from tenfold.fleet.slots.local import LocalWorld
from tenfold.fleet.slots.slots import DRAINED, Lend, Limits, Return
from tenfold.launch.job import Job, JobStopped, open_launcher
from tenfold.train.checkpoint import latest
from tenfold.train.goodput import read_goodput
from tenfold.train.hooks.sleep import Sleep
from tenfold.train.metrics import read_metrics
from tenfold.train.tasks.find import open_task
from tenfold.train.trainer import fit, standard_hooks


def until(true, seconds=240):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


class Fleet:
    """One slot of a run's, which is lent to chat; turned by hand."""

    def __init__(self, folder, keep_bytes, **limits):
        self.folder, self.counting = folder, toy_roles.SleepingCount(folder / "steps")
        self.ledger = Ledger(folder / "ledger.db", {"b": "train"}, time.time())
        self.front = Front(folder)
        roles = {"chat": toy_roles.SleepingChat(), "train": self.counting}
        self.world = LocalWorld(folder, self.ledger, roles, open_launcher("local"), {"chat": self.front})
        self.world.limits = Limits(**{"leave_s": 60, "start_s": 120, "tick_s": 0.1, "switch_s": 0.5, **limits})
        self.world.sleepers.keep_bytes = keep_bytes
        self.world.open("b")
        self.settle()

    def settle(self):
        until(lambda: not any(slot.turning for slot in self.world.observe(self.world.clock()).slots))

    def turn(self, move):
        """Who has the slot after a move: its process group."""
        self.world.apply(move)
        self.settle()
        return json.loads((self.folder / "b.lock").read_text())["group"]

    def lend(self, seconds=3600.0, role="chat"):
        return self.turn(Lend("b", role, self.world.clock() + seconds, "a launch"))

    def steps(self):
        return [int(step) for step in self.counting.path.read_text().split()]

    @property
    def holder(self):
        return json.loads((self.folder / "b.lock").read_text())["group"]


@contextmanager
def fleet(folder, keep_bytes=2**40, **limits):
    opened = Fleet(folder, keep_bytes, **limits)
    try:
        yield opened
    finally:
        opened.world.close()
        opened.ledger.close()
        opened.front.end()


def lives(group):
    return psutil.pid_exists(group) and psutil.Process(group).status() != psutil.STATUS_ZOMBIE


def test_processes_stay_asleep_one_has_the_slot_and_a_killed_one_is_started_again(tmp_path):
    with fleet(tmp_path) as one:
        train = one.holder
        chat = one.lend()
        at = len(one.steps())
        assert lives(train) and lives(chat) and chat != train
        assert one.turn(Return("b", "over")) == train
        until(lambda: len(one.steps()) > at)
        assert one.lend() == chat  # both came back as they were
        os.killpg(train, signal.SIGKILL)  # asleep
        until(lambda: not lives(train))
        again = one.turn(Return("b", "over"))
        assert again not in (train, chat)
        os.killpg(chat, signal.SIGSTOP)  # asleep, and it will not wake up
        one.world.limits = Limits(leave_s=60, start_s=15, tick_s=0.1)
        assert one.lend() not in (train, chat, again)
        assert not lives(chat)
        one.turn(Return("b", "over"))
    assert one.steps() == list(range(len(one.steps())))
    leases = one.ledger.leases()
    assert [lease.ended for lease in leases[:-1]] == [lease.since for lease in leases[1:]] and all(x.ready for x in leases)
    assert all(loan.lost_s > 0 for loan in leases if loan.until is not None)


def test_what_does_not_fit_leaves_and_in_a_drained_slot_nothing_stays(tmp_path):
    with fleet(tmp_path, keep_bytes=1) as one:
        train = one.holder
        chat = one.lend()
        assert not lives(train) and one.turn(Return("b", "over")) != train and not lives(chat)
        one.world.sleepers.keep_bytes = 2**40
        train = one.holder
        chat = one.lend()
        assert lives(train)
        one.lend(role=DRAINED)
        assert not lives(chat) and not lives(train)
    assert one.steps() == list(range(len(one.steps())))


def test_a_woken_borrower_is_gone_by_its_deadline_and_sleepers_follow_their_controller(tmp_path):
    with fleet(tmp_path, leave_s=1) as one:
        one.lend()
        train = one.turn(Return("b", "over"))
        end = time.monotonic() + 20
        chat = one.lend(seconds=20)  # nobody ends it
        until(lambda: not lives(chat))
        assert time.monotonic() >= end - 1
        after = Job("next", function=hold, arguments=(tmp_path / "b.lock", None, int))
        assert open_launcher("local").submit(after).future.result(timeout=120) == 0  # the slot is free
        assert lives(train)
        assert one.turn(Return("b", "its deadline")) == train
    until(lambda: not lives(train))


def small_run(steps):
    return run_config(
        tokens=steps * 4 * 32, device="cpu", dtype="float32", threads=1, compile="off", model={"width": 32, "context": 32},
        corpus=str(Path(sysconfig.get_path("stdlib")) / "email"), vocab_size=300, seq_len=32, batch_size=4, max_epochs=100,
        save_every_s=1e6, log_every=1, evaluate_tokens=256,
    )  # fmt: skip


def losses(directory):
    return {row["step"]: row["loss"] for row in read_metrics(directory / "run.jsonl") if row["event"] == "step"}


class Slower:
    """Sleeps and wakes up a run from a thread, and does something meanwhile."""

    def __init__(self, hook, times, meanwhile):
        self.thread = threading.Thread(target=self._work, args=(hook, times, meanwhile), daemon=True)
        self.thread.start()

    def _work(self, hook, times, meanwhile):
        for _ in range(times):
            hook.sleep()
            meanwhile()
            hook.wake_up()


def test_a_run_that_sleeps_goes_on_from_memory_and_one_that_is_ended_then_from_its_checkpoint(tmp_path):
    config = small_run(12)
    task = open_task(config, tmp_path, quiet=True)
    fit(task, config, tmp_path / "undisturbed", standard_hooks(config, quiet=True))
    directory, saved = tmp_path / "slept", []

    def lose_the_checkpoint():
        saved.append(latest(directory / "checkpoint"))
        shutil.rmtree(directory / "checkpoint")

    hook = Sleep()
    Slower(hook, 2, lose_the_checkpoint)
    assert fit(task, config, directory, [*standard_hooks(config, quiet=True), hook]).finished
    assert len(set(saved)) == 2 and losses(directory) == losses(tmp_path / "undisturbed")
    goodput = read_goodput(directory / "time.jsonl")
    assert goodput["starts"] == 3 and goodput["redone_steps"] == 0

    directory, hook = tmp_path / "ended", Sleep()
    Slower(hook, 1, lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(600)))
    with pytest.raises(JobStopped, match="while it slept"):
        fit(task, config, directory, [*standard_hooks(config, quiet=True), hook])
    assert not losses(directory).get(12)
    assert fit(task, config, directory, standard_hooks(config, quiet=True)).finished
    assert losses(directory) == losses(tmp_path / "undisturbed")
