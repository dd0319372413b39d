"""Runs: equal to the bit, through kills and resumes; stopped with one sentence where they cannot go on."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from msgspec import structs
from run_configs import run_config
from safetensors.torch import load_file
from stop_at import SignalAt, pretrain_with

from tenfold.data.text.batches import validation_batches
from tenfold.model.io.huggingface import read_model
from tenfold.spec.errors import TenfoldError
from tenfold.train import checkpoint, run_file
from tenfold.train.hook import Hook
from tenfold.train.metrics import read_metrics
from tenfold.train.optim.hyperparameters import derive
from tenfold.train.optim.schedule import schedule
from tenfold.train.result import read_result
from tenfold.train.run_file import config_from_fields, read_config, write_config
from tenfold.train.tasks.pretrain import pretrain
from tenfold.train.trainer import fit, standard_hooks

SMALL = {"model": {"width": 16}, "seq_len": 64, "batch_size": 4, "evaluate_tokens": 2048, "log_every": 5}

CHILD = """
import json, os, sys, torch
sys.path.insert(0, os.environ["TESTS"])
from pathlib import Path
from run_configs import run_config
from tenfold.data.text.corpus import open_corpus
from tenfold.train.tasks.pretrain import pretrain
torch.set_num_threads(1)
fields = json.loads(sys.argv[3])
pretrain(run_config(**fields), open_corpus(Path(sys.argv[1])), Path(sys.argv[2]), quiet=True)
"""

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TESTS": str(Path(__file__).parent)}


def weights(directory):
    return load_file(directory / "model" / "model.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_two_runs_of_one_seed_are_equal_to_the_bit_and_another_seed_is_not(corpus, tmp_path, optimizer):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        pretrain(run_config(tokens=6000, seed=seed, optimizer=optimizer, **SMALL), corpus, tmp_path / name, quiet=True)
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not equal(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_a_bfloat16_run_is_scored_with_the_weights_that_it_leaves(corpus, tmp_path):
    config = run_config(tokens=60_000, dtype="bfloat16", **SMALL)
    result = pretrain(config, corpus, tmp_path, quiet=True)
    model, nats, count = read_model(tmp_path / "model"), 0.0, 0
    for batch in validation_batches(corpus, batch_size=16, seq_len=64, limit_tokens=2048):
        tokens, targets, document = (torch.from_numpy(a) for a in (batch.tokens, batch.targets, batch.document))
        with torch.no_grad():
            logits = model(tokens, document)
        nats += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
        ).item()
        count += batch.target_count
    assert result.loss == pytest.approx(nats / count, rel=0.01)


def test_a_run_learns_and_writes_what_a_planner_needs(corpus, tmp_path):
    result = pretrain(run_config(tokens=60_000, **SMALL), corpus, tmp_path, quiet=True)
    events = read_metrics(tmp_path / "run.jsonl")
    losses = [e["loss"] for e in events if e["event"] == "step"]
    assert losses[-1] < losses[0] - 0.5
    end = events[-1]
    assert end["event"] == "end" and read_result(tmp_path) == result
    assert end["flops"] == pytest.approx(end["tokens"] * events[0]["flops_per_token"])
    assert end["tokens_per_s"] > 0 and 0 < end["mfu"] < 1 and end["energy_kwh"] > 0 and end["peak_memory_gib"] > 0.1
    assert set(end["energy_source"].split("+")) <= {"nvml", "rapl", "estimated"}


@pytest.mark.slow
def test_kill_9_at_random_moments_and_resume_gives_the_same_weights(corpus, tmp_path):
    fields = {"tokens": 40_000, "save_every_s": 0.05, **SMALL}
    pretrain(run_config(**fields), corpus, tmp_path / "whole", quiet=True)
    draw = random.Random(0)
    command = [sys.executable, "-c", CHILD, str(corpus.directory), str(tmp_path / "killed"), json.dumps(fields)]
    kills = 0
    while kills < 4:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
        deadline = time.monotonic() + 60
        before = set((tmp_path / "killed" / "checkpoint").glob("step-*"))
        while child.poll() is None and time.monotonic() < deadline:
            if set((tmp_path / "killed" / "checkpoint").glob("step-*")) - before:
                time.sleep(draw.uniform(0, 0.3))
                break
            time.sleep(0.005)
        if child.poll() is not None:
            break
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills += 1
    assert kills >= 1
    subprocess.run(command, check=True, env=ENVIRONMENT)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    steps = [e["step"] for e in read_metrics(tmp_path / "killed" / "run.jsonl") if e["event"] == "step"]
    assert steps == sorted(set(steps))


def test_sigterm_saves_and_leaves(corpus, tmp_path):
    result = pretrain_with([SignalAt(7)], run_config(tokens=20_000, **SMALL), corpus, tmp_path)
    assert not result.finished and result.step == 7
    assert (tmp_path / "checkpoint" / "step-00000007" / "manifest.json").exists()
    assert pretrain(run_config(tokens=20_000, **SMALL), corpus, tmp_path, quiet=True).finished


class Started(Hook):
    started = False

    def start(self, run):
        self.started = True


def test_two_hooks_of_one_class_are_both_started(corpus, tmp_path):
    hooks = [Started(), Started()]
    pretrain_with(hooks, run_config(tokens=2000, **SMALL), corpus, tmp_path / "run")
    assert all(hook.started for hook in hooks)


def test_a_damaged_checkpoint_is_passed_over(corpus, tmp_path):
    config = run_config(tokens=10_000, save_every_s=0, keep_last=3, **SMALL)
    pretrain(config, corpus, tmp_path, quiet=True)
    whole = weights(tmp_path)
    steps = sorted((tmp_path / "checkpoint").iterdir())
    shard = next(steps[-1].glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.warns(UserWarning, match="is damaged; an earlier one is used"):
        pretrain(config, corpus, tmp_path, quiet=True)
    assert equal(whole, weights(tmp_path))
    for step in (tmp_path / "checkpoint").iterdir():
        (step / "manifest.json").write_text("{")
    with pytest.warns(UserWarning), pytest.raises(TenfoldError, match="Every checkpoint in .* is damaged"):
        pretrain(config, corpus, tmp_path, quiet=True)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs to mount a small file system")
def test_a_full_disk_is_one_sentence_and_earlier_checkpoints_stay(corpus, tmp_path):
    small = tmp_path / "disk"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        config = run_config(tokens=10_000, save_every_s=0, keep_last=50, **SMALL)
        with pytest.raises(TenfoldError, match="disk is full"):
            pretrain(config, corpus, small / "run", quiet=True)
        kept = sorted((small / "run" / "checkpoint").glob("step-*"))
        assert kept and not list((small / "run" / "checkpoint").glob(".step-*"))
        assert all(checkpoint._verified(path) for path in kept)
    finally:
        subprocess.run(["umount", small], check=True)


def test_nan_stops_the_run_after_counted_skips(corpus, tmp_path):
    with pytest.raises(TenfoldError, match="20 steps in a row .* lower learning_rate"):
        config = run_config(tokens=20_000, **SMALL)
        optimizer = structs.replace(config.optimizer, learning_rate=float("nan"))  # what no run file can say
        pretrain(structs.replace(config, optimizer=optimizer), corpus, tmp_path, quiet=True)


def test_micro_batches_do_not_change_the_run(corpus, tmp_path):
    losses = []
    for micro in (0, 1, 3):
        result = pretrain(run_config(tokens=8000, micro_batch=micro, **SMALL), corpus, tmp_path / str(micro), quiet=True)
        losses.append(result.loss)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)


def test_a_mistyped_setting_suggests_the_nearest(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("flops = 1e12\n[optimizer]\nlearning_rte = 0.1\n")
    with pytest.raises(TenfoldError, match=r"\[optimizer\], has no setting 'learning_rte' \(did you mean 'learning_rate'\?\)"):
        read_config(file)
    file.write_text("flops = 1e12\n[optimizer]\nschedule = 'linear'\n")
    with pytest.raises(TenfoldError, match="schedule"):
        read_config(file)
    file.write_text("flops = 1e12\n[parallel]\nseq_len = 64\n")
    with pytest.raises(TenfoldError, match=r"cannot give seq_len: write it in \[data\]"):
        read_config(file)
    with pytest.raises(TenfoldError, match="both flops and tokens"):
        config_from_fields({"flops": 1e12, "tokens": 5}, "run.toml")
    with pytest.raises(TenfoldError, match="must give flops or tokens"):
        config_from_fields({}, "run.toml")


def test_the_rule_keeps_what_it_promises():
    for tokens in (10**5, 10**7, 10**9):
        h = derive(tokens, 256)
        assert h.weight_decay * h.steps == pytest.approx(1)
        assert h.steps * h.batch_size * 256 == pytest.approx(tokens, rel=0.05)
    assert derive(10**7, 256).batch_size / derive(10**6, 256).batch_size == pytest.approx(10**0.383, rel=0.1)


@pytest.mark.parametrize("kind", ["wsd", "cosine"])
def test_schedules_rise_hold_and_fall(kind):
    shares = [schedule(kind, s, 100, 0.1, 0.4) for s in range(100)]
    assert shares[:10] == sorted(shares[:10]) and max(shares) == 1.0
    assert shares[60:] == sorted(shares[60:], reverse=True) and shares[-1] < 0.15
    assert all(0 < s <= 1 for s in shares)


@pytest.mark.parametrize("key, place", [(key, place) for key, place in run_file.MOVED.items() if key != "layout"])
def test_a_key_of_an_older_run_file_is_refused_with_its_new_place(key, place):
    table, _, name = place.rpartition(".")
    with pytest.raises(TenfoldError, match=f"gives {key}, which is .*{name}.*{table}"):
        config_from_fields({"flops": 1e12, key: 1}, "run.toml")


def test_a_run_file_that_is_written_reads_the_same(tmp_path):
    asked = run_config(
        flops=1e12, model={"width": 64, "family": "llama4", "vision": {"dim": 32}}, images="drawings", optimizer="adamw",
        parallel={"dp_shard": 2, "tp": 2, "micro_batch": 3}, load_balancing="none", keep_last=5,
    )  # fmt: skip
    write_config(asked, tmp_path / "run.toml")
    assert read_config(tmp_path / "run.toml") == asked


def test_the_losses_of_a_task_of_ones_own_are_those_that_it_counts(corpus, tmp_path):
    """The task of docs/training.md, read from there: a loss that leaves out the first half of every row."""
    guide = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    source = re.search(r"```python\n(.*?class SecondHalf.*?)```", guide, re.S)[1]
    assert len(source.splitlines()) <= 30
    names = {}
    exec(source, names)
    run = run_config(tokens=4000, **{**SMALL, "log_every": 1})
    task = names["SecondHalf"](run, corpus, tmp_path)
    fit(task, run, tmp_path / "run", standard_hooks(run, quiet=True))
    first = next(e for e in read_metrics(tmp_path / "run" / "run.jsonl") if e["event"] == "step")
    assert first["loss"] == pytest.approx(math.log(corpus.vocab_size), rel=1e-4)  # an untrained model, by the mean over what counts
    rows = task.rows(0, slice(0, 4))
    assert rows.weight() == (rows.batch.targets[:, 32:] >= 0).sum()
