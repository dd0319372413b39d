"""Stragglers are named, and arithmetic that does not repeat itself ends the run."""

import time

import pytest
import torch
import torch.distributed as dist
from processes import run_together

from tenfold.spec.errors import TenfoldError
from tenfold.train import trainer as loop
from tenfold.train.config import RunConfig
from tenfold.train.hooks import health
from tenfold.train.metrics import read_metrics
from tenfold.train.parallel import parallelize as layout


def find_the_slow():
    layout.start_processes()
    rank = dist.get_rank()
    quick = health.product_s
    health.product_s = lambda device: 1.0 if rank != 1 else 2.0
    found = health.stragglers(0.5 if rank == 2 else 0.01, 1.0, torch.device("cpu"))
    assert [(slow["rank"], slow["why"].split(" take")[0]) for slow in found] == [(1, "its products"), (2, "its batches")]
    assert all(slow["host"] for slow in found)
    health.product_s = lambda device: 1.0
    assert not health.stragglers(0.01, 1.0, torch.device("cpu"))
    assert quick(torch.device("cpu")) > 0


def test_slow_processes_are_named_to_all_and_the_others_are_not():
    run_together(3, find_the_slow)


def test_a_slow_loader_is_an_event_of_the_run(corpus, tmp_path):
    run_together(2, train_with_a_slow_loader, corpus, tmp_path)
    events = [e for e in read_metrics(tmp_path / "run.jsonl") if e["event"] == "straggler"]
    assert events and {e["rank"] for e in events} == {1} and "batches" in events[0]["why"]


def train_with_a_slow_loader(corpus, folder):
    layout.start_processes()
    make = loop._batch
    if dist.get_rank() == 1:
        loop._batch = lambda *arguments: time.sleep(0.05) or make(*arguments)
    health.product_s = lambda device: 1.0
    config = RunConfig(tokens=60 * 4 * 32, seq_len=32, batch_size=4, model={"width": 16}, evaluate_tokens=512, device="cpu")
    loop.train(config, corpus, folder, quiet=True)


def test_arithmetic_that_differs_is_one_sentence_and_that_which_repeats_goes_on(corpus, tmp_path, monkeypatch):
    config = RunConfig(tokens=8 * 4 * 32, seq_len=32, batch_size=4, model={"width": 16}, evaluate_tokens=512, replay_every=2)
    assert loop.train(config, corpus, tmp_path / "well", quiet=True).finished
    losses = iter(torch.arange(100.0))
    monkeypatch.setattr(loop, "_loss_again", lambda *_: next(losses))
    with pytest.raises(TenfoldError, match=r"after step 2 came out differently .* on process 0"):
        loop.train(config, corpus, tmp_path / "ill", quiet=True)


def poisoned(monkeypatch, since, until=10**9):
    """Let batches `since` to `until` of a run have losses that are far too high; returns the numbers of all that are drawn."""
    make, step, drawn = loop._batch, loop._step, []

    def batch(*arguments):
        drawn.append(arguments[3])
        return make(*arguments)

    def high(*arguments):
        loss, norm = step(*arguments)
        return loss + 5.0 * (since <= drawn[-1] < until), norm

    monkeypatch.setattr(loop, "_batch", batch)
    monkeypatch.setattr(loop, "_step", high)
    return drawn


COURSE = {"tokens": 160 * 4 * 32, "seq_len": 32, "batch_size": 4, "model": {"width": 16}, "evaluate_tokens": 512, "log_every": 1}


def test_a_loss_that_leaves_its_course_goes_back_and_around(corpus, tmp_path, monkeypatch):
    drawn = poisoned(monkeypatch, 60, 72)
    config = RunConfig(**COURSE, checkpoint_every_s=0.0, keep=100, upload_to=str(tmp_path / "store"))
    assert loop.train(config, corpus, tmp_path, quiet=True).step == 160
    # At step 70 ten losses were too high: the run goes on from step 50 with batch 70.
    assert drawn == list(range(180))
    steps = {e["step"]: e["loss"] for e in read_metrics(tmp_path / "run.jsonl") if e["event"] == "step"}
    assert sorted(steps) == list(range(1, 161))
    assert sum(loss > 8 for loss in steps.values()) == 2  # batches 70 and 71: too few to matter
    assert loop.train(config, corpus, tmp_path, quiet=True).finished


def test_a_loss_that_stays_high_or_has_no_way_back_stops_in_one_sentence(corpus, tmp_path, monkeypatch):
    drawn = poisoned(monkeypatch, 60)
    with pytest.raises(TenfoldError, match="no checkpoint of step 50 or earlier"):
        loop.train(RunConfig(**COURSE, checkpoint_every_s=1e9), corpus, tmp_path / "a", quiet=True)
    drawn.clear()
    poisoned(monkeypatch, 120)
    with pytest.raises(TenfoldError, match="after 5 returns: lower learning_rate"):
        loop.train(RunConfig(**COURSE, checkpoint_every_s=0.0, keep=100), corpus, tmp_path / "b", quiet=True)
