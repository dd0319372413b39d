"""Stragglers are named, and arithmetic that does not repeat itself ends the run."""

import time

import pytest
import torch
import torch.distributed as dist
from processes import run_together

from tenfold.spec.errors import TenfoldError
from tenfold.train import health, layout, loop
from tenfold.train.config import RunConfig
from tenfold.train.metrics import read_metrics


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
