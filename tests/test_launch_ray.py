"""A job that is really submitted to a Ray cluster on this machine; skipped where Ray's job server is not installed."""

import time

import pytest
from ray_cluster import RayCluster

from tenfold.launch.job import Job, Resources, open_launcher
from tenfold.launch.records import read_record, write_record

pytest.importorskip("ray")
pytest.importorskip("aiohttp_cors", reason="Ray's job server is missing: pip install 'tenfold[ray]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """One node of two cores."""
    with RayCluster() as cluster:
        yield cluster


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
