"""`run.jsonl`: strict JSON lines that survive kills, and read as one run after a resume."""

import json
import math
import multiprocessing
import os
import resource
import signal
import sys
import time
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.spec.errors import TenfoldError
from tenfold.train.metrics import MetricsWriter, read_metrics


def no_constant(name):
    raise ValueError(f"{name} is not JSON")


def strict(path):
    return [json.loads(line, parse_constant=no_constant) for line in path.read_text().splitlines()]


def steps(path):
    return [row["step"] for row in read_metrics(path) if row["event"] == "step"]


def test_each_event_is_one_strict_json_line_on_disk_at_once(tmp_path):
    before = time.time()
    with MetricsWriter(tmp_path) as metrics:
        metrics.write("start", model={"width": 64}, corpus=tmp_path)
        metrics.write("step", step=1, loss=2.5, grad_norm=math.inf, note="näher")
        metrics.write("step", step=2, loss=math.nan)
        rows = strict(tmp_path / "run.jsonl")  # before it is closed
    assert [row["event"] for row in rows] == ["start", "step", "step"]
    assert rows[0]["model"] == {"width": 64} and rows[0]["corpus"] == str(tmp_path)
    assert rows[1]["loss"] == 2.5 and rows[1]["grad_norm"] is None and rows[1]["note"] == "näher"
    assert rows[2]["loss"] is None
    assert all(before - 0.01 <= row["time"] <= time.time() + 0.01 for row in rows)
    assert read_metrics(tmp_path / "run.jsonl") == rows
    assert read_metrics(tmp_path / "none.jsonl") == []


@given(st.data())
def test_a_file_cut_at_any_byte_reads_as_the_whole_lines_before(tmp_path_factory, data):
    rows = [{"event": "step", "step": i, "note": note} for i, note in enumerate(data.draw(st.lists(st.text(), max_size=5)))]
    content = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    cut = data.draw(st.integers(0, len(content)))
    path = tmp_path_factory.mktemp("cut") / "run.jsonl"
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    assert read_metrics(path)[:whole] == rows[:whole]
    assert read_metrics(path) in (rows[:whole], rows[: whole + 1])  # the last may miss no more than its line end


def test_a_resumed_run_reads_as_one_run(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write("start", seed=1)
        for step in range(1, 8):
            metrics.write("step", step=step, loss=1.0)
        metrics.write("evaluation", step=7, loss=1.0)
    with (tmp_path / "run.jsonl").open("ab") as stream:
        stream.write(b'{"event": "step", "step": 8, "lo\xc3')  # torn by a kill
    with MetricsWriter(tmp_path, resume_step=4) as metrics:
        metrics.write("resume", step=4)
        for step in range(5, 10):
            metrics.write("step", step=step, loss=2.0)
        metrics.write("end", step=9)
    rows = strict(tmp_path / "run.jsonl")
    assert steps(tmp_path / "run.jsonl") == list(range(1, 10))
    assert [r["loss"] for r in rows if r["event"] == "step"] == [1.0] * 4 + [2.0] * 5
    assert [r["event"] for r in rows if r["event"] != "step"] == ["start", "resume", "end"]
    with MetricsWriter(tmp_path, resume_step=9) as metrics:  # a finished run, run again
        metrics.write("end", step=9)
    assert sum(r["event"] == "end" for r in strict(tmp_path / "run.jsonl")) == 1


def test_a_run_stopped_before_its_first_step_keeps_its_start(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write("start", seed=1)
        metrics.write("step", step=1, loss=1.0)
    with MetricsWriter(tmp_path, resume_step=0) as metrics:
        metrics.write("resume", step=0)
    assert [r["event"] for r in strict(tmp_path / "run.jsonl")] == ["start", "resume"]
    with MetricsWriter(tmp_path) as metrics:  # and a new run begins a new file
        metrics.write("start", seed=2)
    assert [r["seed"] for r in strict(tmp_path / "run.jsonl")] == [2]


def write_without_end(directory, first):
    with MetricsWriter(directory, resume_step=first - 1) as metrics:
        for step in range(first, 10**7):
            metrics.write("step", step=step, note="x" * 200)


def test_kill_9_while_writing_loses_no_line_that_was_written(tmp_path):
    path, last = tmp_path / "run.jsonl", 0
    for _ in range(5):
        child = multiprocessing.get_context("fork").Process(target=write_without_end, args=(tmp_path, last + 1))
        child.start()
        deadline = time.monotonic() + 120
        while (steps(path) or [0])[-1] <= last and time.monotonic() < deadline:
            time.sleep(0.003)
        seen = steps(path)[-1]
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert steps(path) == list(range(1, steps(path)[-1] + 1)) and steps(path)[-1] >= seen > last
        last = steps(path)[-1]


def test_a_disk_that_takes_no_more_is_one_sentence_and_the_lines_before_stay(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(TenfoldError, match=r"run.jsonl could not be written: file too large") as raised:  # noqa: SIM117
            with MetricsWriter(tmp_path) as metrics:
                for step in range(1, 1000):
                    metrics.write("step", step=step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(raised.value)
    found = steps(tmp_path / "run.jsonl")
    assert len(found) > 50 and found == list(range(1, len(found) + 1))


def test_tensorboard_shows_one_run_after_a_resume(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricsWriter(tmp_path, tensorboard=True) as metrics:
        metrics.write("start", seed=1)
        for step in range(1, 7):
            metrics.write("step", step=step, loss=1.0 / step, note="words are not scalars")
    time.sleep(1.1)  # event files are named by the second, and read in that order
    with MetricsWriter(tmp_path, tensorboard=True, resume_step=3) as metrics:
        for step in range(4, 9):
            metrics.write("step", step=step, loss=2.0 / step)
    board = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Tags()["scalars"] == ["step/loss"]
    found = [(s.step, s.value) for s in board.Scalars("step/loss")]
    want = [(s, (1.0 if s <= 3 else 2.0) / s) for s in range(1, 9)]
    assert [s for s, _ in found] == [s for s, _ in want]
    assert [v for _, v in found] == pytest.approx([v for _, v in want])


@pytest.mark.parametrize(
    ("module", "options", "command"),
    [
        ("torch.utils.tensorboard", {"tensorboard": True}, r"pip install 'tenfold\[tensorboard\]'"),
        ("wandb", {"wandb_project": "p"}, r"pip install 'tenfold\[wandb\]'"),
    ],
)
def test_a_missing_package_is_one_sentence_with_the_command(tmp_path, monkeypatch, module, options, command):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TenfoldError, match=command):
        MetricsWriter(tmp_path, **options)


def test_wandb_gets_numbers_by_step_and_goes_on_with_the_same_run(tmp_path, monkeypatch):
    calls, logged, codes = [], [], []

    class Run:
        def log(self, numbers, step):
            logged.append((step, numbers))

        def finish(self, exit_code):
            codes.append(exit_code)

    def init(**options):
        calls.append(options)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with MetricsWriter(tmp_path, wandb_project="climb") as metrics:
        metrics.write("start", seed=1)
        metrics.write("step", step=1, loss=2.0, note="no scalar")
    with pytest.raises(KeyError), MetricsWriter(tmp_path, wandb_project="climb", resume_step=1):
        raise KeyError
    assert logged == [(1, {"step/loss": 2.0})]
    assert codes == [0, 1]
    assert calls[0]["project"] == "climb" and calls[0]["id"] and calls[0] == calls[1]
