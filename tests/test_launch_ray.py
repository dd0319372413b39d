"""A job that is really submitted to a Ray cluster on this machine; skipped where Ray's job server is not installed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tenfold.launch.job import Job, Resources, open_launcher
from tenfold.launch.records import read_record, write_record

pytest.importorskip("ray")
pytest.importorskip("aiohttp_cors", reason="Ray's job server is missing: pip install 'tenfold[ray]'")
pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """One node of two cores, whose job server's address is in RAY_ADDRESS; ended by its process group."""
    home, port = Path(f"/tmp/tenfold-ray-{os.getpid()}"), free_port()  # short: Ray makes sockets in it
    home.mkdir()
    environment = os.environ | {"HOME": str(home), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    options = ["--num-cpus=2", f"--port={free_port()}", f"--dashboard-port={port}", "--dashboard-host=127.0.0.1"]
    options += ["--include-dashboard=true", f"--temp-dir={home}", "--node-ip-address=127.0.0.1", "--block", "--disable-usage-stats"]
    with (home / "said").open("w") as said, pytest.MonkeyPatch.context() as patch:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *options]
        ray = subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)
        patch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{port}")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        try:
            for _ in range(600):
                with socket.socket() as there:
                    if there.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert ray.poll() is None, (home / "said").read_text()
                time.sleep(0.5)
            yield
        finally:
            os.killpg(ray.pid, signal.SIGTERM)
            ray.wait(60)
            shutil.rmtree(home, ignore_errors=True)


def wait_for(ray, handle, *states):
    for _ in range(1200):
        if ray.status(handle) in states:
            return
        time.sleep(0.25)
    raise AssertionError(f"{ray.status(handle)} after five minutes: {ray.logs(handle, 50)}")


def test_a_job_runs_with_its_files_and_is_asked_and_stopped_by_others(cluster, tmp_path):
    there = tmp_path / "work"
    there.mkdir()
    (there / "helper.txt").write_text("a helper")
    (tmp_path / "it's a file.txt").write_text("a file")
    file = tmp_path / "it's a file.txt"
    ray = open_launcher("ray", folder=tmp_path, working_dir=there)
    text = 'cat "$1" helper.txt; echo " $WORD"; trap "echo saved; exit 0" TERM; while :; do sleep 0.1; done'
    job = Job(
        "a job",
        ("bash", "-c", text, "name", str(file)),
        resources=Resources(),
        files=(file,),
        environment={"WORD": "it's"},
        grace_s=30,
    )
    handle = ray.submit(job)
    wait_for(ray, handle, "running")
    options = {"folder": tmp_path, "working_dir": there}
    _, _, other, found = read_record(write_record(tmp_path, "ray", options, handle))
    for _ in range(600):
        if "a filea helper it's" in other.logs(found, 100):
            break
        time.sleep(0.25)
    assert "a filea helper it's" in other.logs(found, 100)
    assert other.drain(found, 60)
    wait_for(other, found, "stopped", "finished")
    ended = ray.submit(Job("short", ("bash", "-c", "exit 3"), resources=Resources()))
    wait_for(ray, ended, "failed")
