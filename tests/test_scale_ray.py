"""A climb whose rungs are Ray tasks, on a Ray that is started here."""

import csv
import os
import subprocess
import sys
import time

import pytest
import torch

from tenfold.launch import ray as on_ray
from tenfold.scale.rungs import train_rungs
from tenfold.spec.errors import TenfoldError
from tenfold.train.metrics import read_metrics
from tenfold.train.run_file import config_from_fields


def config(tokens, seed=1):
    fields = {
        "tokens": tokens,
        "model": {"width": 32},
        "seq_len": 16,
        "batch_size": 4,
        "device": "cpu",
        "seed": seed,
        "max_epochs": 1e9,
    }
    return config_from_fields(fields | {"evaluate_tokens": 2000, "log_every": 1}, "the test")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


@pytest.mark.slow
def test_the_runs_are_those_of_one_process_to_the_bit_and_leaving_early_saves(corpus, tmp_path):
    torch.set_num_threads(1)
    runs = [(config(64 * 30, seed), tmp_path / f"ray-{seed}") for seed in (1, 2, 3)]
    here = [(config(64 * 30, seed), tmp_path / f"here-{seed}") for seed in (1, 2, 3)]
    on_cluster = dict(train_rungs(runs, corpus, len(runs), on="ray"))
    alone = dict(train_rungs(here, corpus, 1, quiet=True))
    assert [on_cluster[i].bits_per_byte for i in range(3)] == [alone[i].bits_per_byte for i in range(3)]
    assert not list(tmp_path.glob("*/checkpoint")) and not list(tmp_path.glob("*/model"))
    # A short run and an endless one: when the first has ended we leave, and the other must have saved.
    runs = [(config(64 * 3), tmp_path / "short"), (config(64 * 10**7), tmp_path / "endless")]
    results = train_rungs(runs, corpus, len(runs), on="ray")
    assert next(results)[0] == 0
    log = tmp_path / "endless" / "run.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and any(e["event"] == "step" for e in read_metrics(log))):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    results.close()
    assert "stopped" in {e["event"] for e in read_metrics(log)} and list((tmp_path / "endless" / "checkpoint").iterdir())


def test_what_no_node_has_is_one_sentence():
    nodes = [
        {"Alive": True, "Resources": {"CPU": 2, "memory": 8e9}},
        {"Alive": False, "Resources": {"CPU": 2, "GPU": 8, "memory": 8e9}},
    ]
    on_ray.require(nodes, {"num_cpus": 1, "num_gpus": 0, "memory": 2e9}, "a run")
    with pytest.raises(TenfoldError, match="No node of the Ray cluster has 1 CPU, 1 GPU"):
        on_ray.require(nodes, {"num_cpus": 1, "num_gpus": 1, "memory": 2e9}, "a run")


@pytest.mark.slow
def test_a_climb_on_ray_has_the_points_of_a_climb_without(text_folder, tmp_path):
    points = []
    for more in ([], ["--on", "ray"]):
        home = tmp_path / f"home{len(more)}"
        small = [
            "--corpus",
            text_folder,
            "--top",
            "6e10",
            "--vocab-size",
            "300",
            "--seq-len",
            "16",
            "--home",
            home,
            "--json",
            *more,
        ]
        subprocess.run(
            [sys.executable, "-m", "tenfold", "climb", *small],
            check=True,
            capture_output=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        with (home / "g1" / "points.csv").open() as stream:
            points.append(list(csv.DictReader(stream)))
    assert points[0] == points[1]
