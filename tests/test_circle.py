"""The circle, small: every room in one home, by real processes, and after kills as without them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from console_home import check_figures

from tenfold.circle.walk import walk
from tenfold.spec.errors import TenfoldError
from tenfold.spec.forecasts import read_forecasts

ROOMS = ["climb", "plan", "sites", "learn", "rank", "fleet"]
ENVIRONMENT = os.environ | {"TENFOLD_CIRCLE": "small", "OMP_NUM_THREADS": "2"}


def circle(home, *more):
    """`tenfold circle` in a process group of its own."""
    command = [sys.executable, "-m", "tenfold", "circle", "--home", str(home), "--json", *more]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def walked(home, *more):
    """What a circle that is let be finds."""
    child = circle(home, *more)
    said, error = child.communicate(timeout=1500)
    assert child.returncode == 0, error
    return json.loads(said)["rooms"]


@pytest.mark.timeout(1500)
def test_every_room_does_its_part_and_its_forecasts_are_scored(tmp_path):
    found = walked(tmp_path)
    assert list(found) == ROOMS
    for name, room in found.items():
        assert "numbers" in room, (name, room)
        for file in room["files"]:
            assert (tmp_path / file).exists(), file
    scored = [one for one in read_forecasts(tmp_path) if one.measured is not None]
    # So few steps of tuning may be refused by the gate; the time of the swap is then never measured.
    assert len(scored) >= 9 + found["learn"]["numbers"]["passed"] and len({one.forecast.kind for one in scored}) >= 6
    assert check_figures(tmp_path) > 500  # of the console, in all views
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    assert walked(tmp_path).keys() == found.keys()  # again: nothing is done twice
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")} == before


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_next_circle_climbs_on_and_learns_from_the_first(tmp_path):
    walked(tmp_path)
    first = {one.forecast.key: one for one in read_forecasts(tmp_path)}
    child = circle(tmp_path, "--again")
    while not (tmp_path / "g2").exists():
        time.sleep(0.1)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    found = walked(tmp_path)  # goes on with the second, though it is not asked for again
    assert list(found) == ROOMS and json.loads((tmp_path / "circle.json").read_text())["number"] == 2
    known = {one.forecast.key: one for one in read_forecasts(tmp_path)}
    assert all(known[key] == one for key, one in first.items() if one.measured is not None)
    (plan,) = (one for one in first.values() if one.forecast.who == "plan")
    seconds = json.loads((tmp_path / "g2" / "score.json").read_text())["scores"]["seconds"]["measured"]
    assert plan.measured is None and known[plan.forecast.key].measured == seconds
    for kind in ("loss", "speed", "duration", "energy"):
        assert known[f"climb/g2/{kind}"].forecast.learnt.outcomes == 1 and known[f"climb/g2/{kind}"].measured is not None
    assert known["fleet-2/switch_seconds"].forecast.learnt.outcomes == 1
    assert (tmp_path / "fleet-1" / "fleet.json").exists() and (tmp_path / "chat-2" / "gate.json").exists()


def test_the_next_circle_needs_a_first_and_the_settings_of_a_home_stay(tmp_path):
    child = circle(tmp_path, "--again")
    assert "leave --again out" in child.communicate(timeout=120)[1] and child.returncode == 1
    begun = {"version": 1, "number": 1, "settings": {"corpus": "docstrings", "seed": 3}, "rooms": {}}
    (tmp_path / "circle.json").write_text(json.dumps(begun))
    child = circle(tmp_path, "--seed", "4")
    assert "has the corpus docstrings and the seed 3" in child.communicate(timeout=120)[1] and child.returncode == 1
    for damaged in ({"settings": {"seed": "x"}}, {"number": "two"}, {"rooms": [1]}):
        (tmp_path / "circle.json").write_text(json.dumps(begun | damaged))
        with pytest.raises(TenfoldError, match="is damaged: remove it"):
            walk(tmp_path, print)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_ten_random_moments_it_goes_on_to_the_same_release(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    walked(undisturbed)
    draw = random.Random(0)
    for _ in range(10):
        child = circle(killed)
        time.sleep(draw.uniform(3, 25))
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    walked(killed)
    releases = [json.loads(Path(home / "release.json").read_text()) for home in (undisturbed, killed)]
    assert releases[0]["sha256"] == releases[1]["sha256"]
