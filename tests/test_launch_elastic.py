"""Failures: a run that loses processes, or stands still, goes on by itself to the very same end, and says what it cost."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from run_configs import run_config
from safetensors.torch import load_file

from tenfold.launch.job import Resources
from tenfold.launch.local import LocalLauncher
from tenfold.spec.errors import TenfoldError
from tenfold.train.goodput import read_goodput
from tenfold.train.jobs import train_on
from tenfold.train.metrics import read_metrics
from tenfold.train.tasks.find import open_task
from tenfold.train.trainer import fit, standard_hooks

STEPS = 24
RUN = {
    "seq_len": 32, "batch_size": 4, "tokens": STEPS * 4 * 32, "evaluate_tokens": 512, "log_every": 1, "dtype": "float32",
    "device": "cpu", "compile": "off", "optimizer": "adamw", "save_every_s": 0.0, "hang_after_s": 20.0, "vocab_size": 400,
    "model": {"name": "tiny", "dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "ffn_dim": 32, "vocab_size": 400},
}  # fmt: skip


def fit_disturbed(config, directory, home, quiet, disturb):
    """A worker that trains as any other, but calls `disturb(step)` before it makes the rows of a step."""
    torch.set_num_threads(1)
    task = open_task(config, home, quiet=quiet)
    make = task.rows

    def rows(step, mine):
        disturb(step)
        return make(step, mine)

    task.rows = rows
    return fit(task, config, directory, standard_hooks(config, quiet=quiet))


def work(config, directory, home, quiet):
    """A worker that does to itself, once and before the step it is for, what `faults.json` says."""

    def disturb(now):
        for name, (step, where) in json.loads((home / "faults.json").read_text()).items():
            if now == step and where == os.environ["RANK"] and not (home / name).exists():
                (home / name).touch()
                if name == "hang":
                    time.sleep(1000)
                if name.startswith("kill at random"):
                    threading.Timer(random.uniform(0, 0.3), os.kill, (os.getpid(), signal.SIGKILL)).start()
                    continue
                os.kill(os.getpid(), signal.Signals[name])

    return fit_disturbed(config, directory, home, quiet, disturb)


def work_with_a_bug(config, directory, home, quiet):
    """A worker whose second process cannot do its eighth step, and says so with an address that is another each time."""

    def disturb(now):
        if now == 7 and os.environ["RANK"] == "1":
            with (home / "starts").open("a") as starts:
                starts.write("x")
            raise IndexError(f"no such row at {id(starts)}\nand more")

    return fit_disturbed(config, directory, home, quiet, disturb)


def run(home, text, name, faults, processes=2, work=work, **fields):
    home.mkdir(exist_ok=True)
    (home / "faults.json").write_text(json.dumps(faults))
    config = run_config(**{**RUN, "corpus": str(text), **fields})
    train_on(LocalLauncher(), Resources(processes=processes), config, home / name, home, quiet=True, grace_s=20, work=work)
    return home / name


def losses(directory):
    return {e["step"]: e["loss"] for e in read_metrics(directory / "run.jsonl") if e["event"] == "step"}


@pytest.fixture(scope="module")
def undisturbed(text_folder, tmp_path_factory):
    return run(tmp_path_factory.mktemp("home"), text_folder, "undisturbed", {})


@pytest.mark.slow
def test_a_run_whose_processes_are_killed_and_hang_ends_as_if_nothing_had_happened(undisturbed, text_folder):
    run(undisturbed.parent, text_folder, "disturbed", {"SIGKILL": (9, "1"), "hang": (17, "0")})
    disturbed = undisturbed.parent / "disturbed"
    assert losses(disturbed) == losses(undisturbed) and len(losses(disturbed)) == STEPS
    a, b = (load_file(d / "model" / "model.safetensors") for d in (undisturbed, disturbed))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    cost = read_goodput(disturbed / "time.jsonl")
    assert cost["starts"] >= 3 and read_goodput(undisturbed / "time.jsonl")["starts"] == 1
    assert cost["down_s"] + cost["other_s"] > RUN["hang_after_s"] - 1  # while it hung
    assert read_metrics(disturbed / "run.jsonl")[-2]["goodput"] == pytest.approx(cost["goodput"])


def test_a_run_goes_on_with_fewer_processes_where_others_were_lost(undisturbed, text_folder, tmp_path):
    with pytest.raises(TenfoldError, match="Stopped by SIGTERM|Stopped and saved|tenfold resume") as stopped:
        directory = run(tmp_path, text_folder, "smaller", {"SIGTERM": (11, "0")})
        assert not losses(directory).get(STEPS)
        raise TenfoldError("Stopped and saved")
    assert "\n" not in str(stopped.value)
    run(tmp_path, text_folder, "smaller", {}, processes=1)
    assert losses(tmp_path / "smaller") == pytest.approx(losses(undisturbed), rel=1e-5)


def test_a_failure_that_comes_again_at_the_same_step_ends_the_run(text_folder, tmp_path):
    with pytest.raises(TenfoldError, match="failed twice in the same way, after step 7: IndexError: no such row at") as ended:
        run(tmp_path, text_folder, "bug", {}, work=work_with_a_bug)
    assert "\n" not in str(ended.value) and (tmp_path / "starts").read_text() == "xx"
    assert max(losses(tmp_path / "bug")) == 7


@pytest.mark.slow
def test_a_run_killed_at_random_moments_goes_on(undisturbed, text_folder):
    faults = {f"kill at random {step}": (step, str(step % 2)) for step in (3, 8, 14)}
    killed = run(undisturbed.parent, text_folder, "killed", faults)
    assert losses(killed) == losses(undisturbed)
    assert read_goodput(killed / "time.jsonl")["starts"] >= 3
    assert not (killed / "failures").exists()


TORCHRUN_BUG = """
import os, sys
from pathlib import Path
from tenfold.launch.failures import noted
directory = Path(sys.argv[1])
with noted(directory):
    with (directory / f"starts-{os.environ['RANK']}").open("a") as starts:
        starts.write("x")
    error = RuntimeError(f"out of memory: {os.getpid()} bytes")
    error.add_note("after step 3")
    raise error
"""


def test_under_torchrun_too_a_failure_that_comes_again_ends_the_job(tmp_path):
    (tmp_path / "work.py").write_text(TORCHRUN_BUG)
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=100", tmp_path / "work.py", tmp_path]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=200)
    assert done.returncode != 0 and "failed twice in the same way, after step 3: RuntimeError: out of memory" in done.stderr
    assert sum(len(path.read_text()) for path in tmp_path.glob("starts-*")) <= 2 * 3  # a process may be lost to the other's failure


def test_the_account_of_a_run_adds_up_to_its_wall_time(tmp_path):
    path = tmp_path / "time.jsonl"
    nothing = {"stepping": 0.0, "saving": 0.0, "evaluating": 0.0}
    rows = [
        {"began": 0.0, "time": 10.0, "step": 0},
        {**nothing, "time": 30.0, "step": 2, "stepping": 20.0},
        {**nothing, "time": 45.0, "step": 3, "stepping": 30.0, "saving": 4.0},  # lost at 45; step 3 was not saved
        {"began": 60.0, "time": 65.0, "step": 2},
        {**nothing, "time": 90.0, "step": 4, "stepping": 20.0, "saving": 1.0, "evaluating": 3.0, "finished": True},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"torn')
    cost = read_goodput(path)
    parts = {k.removesuffix("_s"): v for k, v in cost.items() if k.endswith("_s") and k != "wall_s"}
    assert parts == {"counted": 40, "redone": 10, "starting": 15, "saving": 5, "evaluating": 3, "down": 15, "other": 2}
    assert cost["wall_s"] == 90 == sum(parts.values()) and cost["redone_steps"] == 1 and cost["starts"] == 2
    assert cost["goodput"] == pytest.approx(40 / 90)
    assert read_goodput(tmp_path / "none.jsonl") == {}


def test_a_process_is_said_to_have_begun_when_it_did(tmp_path):
    tick = 2 / os.sysconf("SC_CLK_TCK")  # what the kernel counts processes' starts in

    def is_true(path):
        code = f"from pathlib import Path; from tenfold.train.goodput import GoodputTimer; GoodputTimer(Path({str(path)!r}), 0)"
        before = time.time()
        process = subprocess.Popen([sys.executable, "-c", code])
        after = time.time()
        process.wait()
        return before - tick <= json.loads(path.read_text())["began"] <= after + tick

    # A busy machine may stop the process between the readings of its two clocks.
    assert any(is_true(tmp_path / f"{n}.jsonl") for n in range(5))


HANGS = """
import sys, time
from tenfold.train.watchdog import Watchdog
with Watchdog(1.0) as watchdog:
    for step in range(8):
        time.sleep(0.25)
        watchdog.beat(step)
    if sys.argv[1] == "end":
        watchdog.end()
    time.sleep(0 if sys.argv[1] == "not" else 3)
print("through")
"""


def test_the_watchdog_ends_a_process_that_stands_still_and_no_other():
    done = {
        what: subprocess.run([sys.executable, "-c", HANGS, what], capture_output=True, text=True, timeout=100)
        for what in ("hang", "not", "end")
    }
    assert done["hang"].returncode == 75 and "through" not in done["hang"].stdout
    assert "after step 7" in done["hang"].stderr and 'File "<string>", line 10' in done["hang"].stderr
    assert done["not"].stdout == done["end"].stdout == "through\n" and not done["not"].returncode + done["end"].returncode


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"parallel": {"tp": 3}}, "= 3 processes, but there are 2: start as many"),
        pytest.param({"parallel": {"tp": 2}, "seq_len": 33}, "cannot divide seq_len 33 by 2", marks=pytest.mark.slow),
        ({"parallel": {"dp_shard": 2}, "batch_size": 1}, "divides 1 rows a step over 2 processes"),
    ],
)
def test_a_layout_that_does_not_fit_is_said_once_and_not_tried_again(text_folder, undisturbed, fields, says):
    with pytest.raises(TenfoldError, match=says) as raised:
        run(undisturbed.parent, text_folder, "wrong", {}, **fields)
    assert "\n" not in str(raised.value)
    assert not (undisturbed.parent / "wrong" / "run.jsonl").exists()


def test_a_run_of_another_model_in_its_directory_is_refused_in_one_sentence(text_folder, undisturbed):
    with pytest.raises(TenfoldError, match="begun with other settings .*model.dim was 16 and is 32") as raised:
        run(undisturbed.parent, text_folder, "undisturbed", {}, model={**RUN["model"], "dim": 32})
    assert "\n" not in str(raised.value)


ALONE = """
from tenfold.spec.errors import TenfoldError
from tenfold.train.parallel.processes import start_processes
try:
    start_processes(patience_s=3.0)
except TenfoldError as error:
    print(error)
"""


def test_a_rendezvous_that_cannot_be_reached_is_one_sentence():
    where = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    done = subprocess.run([sys.executable, "-c", ALONE], env=os.environ | where, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    assert "cannot be reached at 127.0.0.1:9" in done.stdout and "see that all were started" in done.stdout
