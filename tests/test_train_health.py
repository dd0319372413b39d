"""Stragglers are named, arithmetic that does not repeat itself ends the run, a loss that spikes goes back and around, and a slow
upload is no hang."""

import threading
import time

import pytest
import torch
import torch.distributed as dist
from processes import run_together
from run_configs import run_config
from stop_at import pretrain_with

from tenfold.spec.errors import TenfoldError
from tenfold.train import store
from tenfold.train.hooks import health
from tenfold.train.hooks.health import LossSpikeDetector
from tenfold.train.metrics import read_metrics
from tenfold.train.parallel.processes import start_processes
from tenfold.train.rollback import LossSpike
from tenfold.train.task import LossSums
from tenfold.train.tasks.pretrain import Pretraining, pretrain
from tenfold.train.watchdog import Watchdog


def find_the_slow():
    start_processes()
    rank = dist.get_rank()
    found = health.stragglers(0.5 if rank == 2 else 0.01, 1.0, 1.0 if rank != 1 else 2.0)
    assert [(slow["rank"], slow["why"].split(" take")[0]) for slow in found] == [(1, "its products"), (2, "its batches")]
    assert all(slow["host"] for slow in found)
    assert not health.stragglers(0.01, 1.0, 1.0)
    assert health.product_s(torch.device("cpu")) > 0


def test_slow_processes_are_named_to_all_and_the_others_are_not():
    run_together(3, find_the_slow)


def test_a_slow_loader_is_an_event_of_the_run(corpus, tmp_path):
    run_together(2, train_with_a_slow_loader, corpus, tmp_path)
    events = [e for e in read_metrics(tmp_path / "run" / "run.jsonl") if e["event"] == "straggler"]
    assert 1 in {e["rank"] for e in events if "batches" in e["why"]}


class SlowLoader(Pretraining):
    def rows(self, step, rows):
        time.sleep(0.15 if dist.get_rank() == 1 else 0)
        return super().rows(step, rows)


def train_with_a_slow_loader(corpus, folder):
    start_processes()
    config = run_config(tokens=52 * 4 * 32, seq_len=32, batch_size=4, model={"width": 16}, evaluate_tokens=512, device="cpu")
    pretrain_with([], config, corpus, folder / "run", SlowLoader)


class Unsteady(Pretraining):
    """Its loss without gradients comes out differently every time."""

    calls = 0

    def loss(self, model, batch):
        sums = super().loss(model, batch)
        if torch.is_grad_enabled():
            return sums
        self.calls += 1
        return LossSums(sums.loss + self.calls, sums.extra)


def test_arithmetic_that_differs_is_one_sentence_and_that_which_repeats_goes_on(corpus, tmp_path):
    config = run_config(tokens=8 * 4 * 32, seq_len=32, batch_size=4, model={"width": 16}, evaluate_tokens=512, sdc_check_every=2)
    assert pretrain(config, corpus, tmp_path / "well", quiet=True).finished
    with pytest.raises(TenfoldError, match=r"after step 2 came out differently .* on process 0"):
        pretrain_with([], config, corpus, tmp_path / "ill", Unsteady)


def poisoned(since, until=10**9):
    """A task whose batches `since` to `until` have losses that are far too high; `drawn` are the numbers of all that it gave."""

    class Poisoned(Pretraining):
        drawn: list[int] = []  # noqa: RUF012

        def rows(self, step, rows):
            self.drawn.append(step)
            return super().rows(step, rows)

        def loss(self, model, batch):
            sums = super().loss(model, batch)
            high = torch.is_grad_enabled() and since <= self.drawn[-1] < until
            return LossSums(sums.loss + 5.0 * high * (batch.targets >= 0).sum(), sums.extra)

    return Poisoned


SPIKING = {"tokens": 160 * 4 * 32, "seq_len": 32, "batch_size": 4, "model": {"width": 16}, "evaluate_tokens": 512, "log_every": 1}


def test_a_loss_that_leaves_its_course_goes_back_and_around(corpus, tmp_path):
    task, run = poisoned(60, 72), tmp_path / "run"
    config = run_config(**SPIKING, save_every_s=0.0, keep_last=100, upload_to=str(tmp_path / "store"))
    assert pretrain_with([], config, corpus, run, task).step == 160
    # At step 70 ten losses were too high: the run goes on from step 50 with batch 70.
    assert task.drawn == list(range(180))
    steps = {e["step"]: e["loss"] for e in read_metrics(run / "run.jsonl") if e["event"] == "step"}
    assert sorted(steps) == list(range(1, 161))
    assert sum(loss > 8 for loss in steps.values()) == 2  # batches 70 and 71: too few to matter
    assert pretrain_with([], config, corpus, run, task).finished


def test_a_loss_that_stays_high_or_has_no_way_back_stops_in_one_sentence(corpus, tmp_path):
    with pytest.raises(TenfoldError, match="no checkpoint of step 50 or earlier"):
        pretrain_with([], run_config(**SPIKING, save_every_s=1e9), corpus, tmp_path / "a", poisoned(60))
    with pytest.raises(TenfoldError, match="after 5 rollbacks: lower learning_rate"):
        pretrain_with([], run_config(**SPIKING, save_every_s=0.0, keep_last=100), corpus, tmp_path / "b", poisoned(120))


@pytest.mark.parametrize("every", [1, 3, 10, 25])
def test_patience_is_counted_in_steps_however_seldom_losses_come(every):
    """The run goes back to before the loss rose, at most two losses after it has been high for ten steps."""
    detector, rises = LossSpikeDetector(2.0), 203
    with pytest.raises(LossSpike) as spike:
        for step in range(every, 1000, every):
            detector.look(9.0 if step >= rises else 4.0, step)
    assert spike.value.before <= rises - health.PATIENCE
    assert rises - spike.value.before <= health.PATIENCE + every
    assert 0 <= spike.value.step - rises <= max(health.PATIENCE, 2 * every)


@pytest.mark.parametrize("every", [60, 100, 500])
def test_steady_losses_are_no_spike_however_seldom_they_come(every):
    detector = LossSpikeDetector(2.0)
    for step in range(every, 20 * every, every):
        detector.look(4.0, step)
    assert detector.usual == pytest.approx(4.0)


def test_one_high_loss_among_others_is_no_spike():
    detector = LossSpikeDetector(2.0)
    for step in range(10, 1000, 10):
        detector.look(9.0 if step % 50 == 0 else 4.0, step)


@pytest.mark.parametrize("transfer", ["upload", "download"])
def test_a_run_that_waits_for_its_store_shows_its_watchdog_that_it_is_alive(transfer, corpus, tmp_path, monkeypatch):
    """The upload is that of the save at the end, and the download comes before the first step: no steps beat the watchdog. Either
    ends when the wait for it has done so."""
    beaten, found, plain, beat = threading.Event(), [], getattr(store, transfer), Watchdog.beat

    def slow(*given):
        beaten.clear()
        found.append(beaten.wait(30))
        return plain(*given)

    monkeypatch.setattr(Watchdog, "beat", lambda watchdog, step=None: (beat(watchdog, step), beaten.set())[0])
    monkeypatch.setattr(store, transfer, slow)
    fields = {"tokens": 3 * 4 * 32, "seq_len": 32, "batch_size": 4, "model": {"width": 16}, "evaluate_tokens": 512}
    pretrain(run_config(**fields, save_every_s=1e9, upload_to=str(tmp_path / "store")), corpus, tmp_path / "run", quiet=True)
    assert found == [True]
    time.sleep(0.5)
    beaten.clear()
    assert not beaten.wait(1)  # nobody beats for a run that would hang from here on
