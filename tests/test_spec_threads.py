"""Threads: that waiting ones let others work, that a run keeps its number, and what is seen of other processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tenfold.spec import threads


def test_the_command_line_sets_the_waiting_policy_before_pytorch_is_loaded():
    code = """
import os, sys
from tenfold.cli import main
sys.argv = ["tenfold", "--help"]
try:
    main()
except SystemExit:
    pass
assert "torch" not in sys.modules
print(os.environ["GOMP_SPINCOUNT"])
"""
    clean = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    for asked, seen in (({}, threads.WAITING["GOMP_SPINCOUNT"]), ({"GOMP_SPINCOUNT": "7"}, "7")):
        done = subprocess.run([sys.executable, "-c", code], env=clean | asked, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1:] == [seen], done.stderr


def test_a_policy_that_was_asked_for_stays(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    threads.set_waiting_policy()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_a_run_keeps_the_threads_that_it_began_with(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads.recommended_threads(64) == 1
    for nonsense in ("all", "0", " "):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        assert threads.recommended_threads(4096) == threads.available_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert threads.recommended_threads(4096) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads.recommended_threads(4096) == threads.recommended_threads(64, tmp_path) == 3
    (tmp_path / "run.jsonl").write_text(json.dumps({"event": "start", "threads": 5}) + '\n{"event": "step"}\n')
    assert threads.recommended_threads(64, tmp_path) == 5
    (tmp_path / "run.jsonl").write_text('{"event": "start", "thr')  # torn by a kill
    assert threads.recommended_threads(64, tmp_path) == 3


def test_what_others_use_is_seen_and_what_we_use_is_not():
    """Against the kernel's own accounts of two processes: another one, and this one."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            cores, before, began = os.cpu_count(), os.times(), time.monotonic()
            share = threads.watch_others()
            while time.monotonic() - began < 1.5:
                pass
            seen, own = share(), sum(os.times()[:2]) - sum(before[:2])
            used = sum(map(int, Path(f"/proc/{other.pid}/stat").read_text().split()[13:15])) / os.sysconf("SC_CLK_TCK")
        finally:
            other.kill()
    assert seen >= (used - 0.3) / (1.5 * cores)  # what the other used at least; there may be more
    assert seen <= 1 - (own - 0.3) / (1.5 * cores)  # and never what we used
