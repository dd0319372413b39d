"""The circle, small: every room in one home, by real processes, and after kills as without them."""

import json
import os
import random
import signal
import subprocess
import sys
import sysconfig
import time
from importlib import resources
from pathlib import Path

import pyarrow.parquet
import pytest
import tomli_w
from console_home import check_figures
from test_fleet_simulation import PLAIN

from tenfold.circle.walk import Circle, CircleSettings, parts, walk
from tenfold.data.interactions.synthetic import made
from tenfold.scale import climb as climbing
from tenfold.scale.options import ClimbSettings
from tenfold.serve.feedback.feedback import Feedback
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
    served = found["fleet"]["numbers"]["services"]
    assert set(served) == {"chat", "rank"} and all(of["requests"] and not of["accepted_lost"] for of in served.values())
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
    assert known["fleet-2/chat/switch_seconds"].forecast.learnt.outcomes == 1
    assert (tmp_path / "fleet-1" / "fleet.json").exists() and (tmp_path / "chat-2" / "gate.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_circle_of_ones_own_uses_what_it_was_given_and_nothing_simulated(tmp_path):
    home, text = tmp_path / "home", tmp_path / "text"
    text.mkdir()
    for n, file in enumerate(sorted(Path(sysconfig.get_path("stdlib"), "email").glob("*.py"))):
        (text / f"{n}.txt").write_bytes(file.read_bytes())
    said = Feedback(f"sqlite:///{tmp_path / 'said.db'}")
    for i in range(120):
        row = {"id": str(i), "model": "m", "checkpoint": "0", "messages": [{"role": "user", "content": f"What of {i}?"}]}
        row |= {"text": "Nothing.", "token_ids": [1], "logprobs": None, "sampling": {}, "finish_reason": "stop"}
        said.add_response(row | {"prompt_tokens": 1, "ttft_ms": None}, f"user {i}")
        said.correct(str(i), f"user {i}", f"Of {i} I know all.")
    pyarrow.parquet.write_table(made("synthetic:users=300,seed=9").table(), tmp_path / "shop.parquet")
    fleet = json.loads(json.dumps(PLAIN))
    fleet["simulation"] |= {"days": 0.5, "seeds": 1}
    (tmp_path / "fleet.toml").write_text(tomli_w.dumps(fleet))
    for name in ("sites", "demand"):
        (tmp_path / f"{name}.toml").write_text((resources.files("tenfold.plan") / f"data/sites/{name}.toml").read_text())
    given = {name: tmp_path / f"{name}.toml" for name in ("fleet", "sites", "demand")}
    given |= {"corpus": text, "feedback": tmp_path / "said.db", "interactions": tmp_path / "shop.parquet", "steps": 5}
    found = walked(home, *(f"--{name}={value}" for name, value in given.items()))
    assert list(found) == ROOMS
    settings = json.loads((home / "circle.json").read_text())["settings"]
    assert {name: settings[name] for name in given} == {n: v if n == "steps" else str(v) for n, v in given.items()}
    assert json.loads((home / "g1" / "climb.json").read_text())["corpus"] == str(text)
    assert json.loads((home / "chat-1" / "lineage.json").read_text())["source"] == str(tmp_path / "said.db")
    assert set(found["rank"]["numbers"]) == {"own", "served"} and found["rank"]["numbers"]["served"]["events"] == 16
    assert set(found["fleet"]["numbers"]["simulated"]) == {"lend", "static"}
    assert (home / "fleet" / "own.simulation.json").exists() and check_figures(home) > 400


def test_what_a_circle_is_given_must_be_there(tmp_path):
    for option in ("model", "feedback", "interactions", "fleet", "sites", "demand"):
        with pytest.raises(TenfoldError, match=f"give --{option} a file that does"):
            walk(tmp_path / "home", print, CircleSettings(**{option: str(tmp_path / "nothing")}))
    assert not (tmp_path / "home").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_circle_climbs_on_from_the_generation_that_it_began_after_however_many_there_are(tmp_path):
    text, home = tmp_path / "text", tmp_path / "home"
    text.mkdir()
    for n in range(40):
        (text / f"{n}.txt").write_text(" ".join(f"word{i * n}" for i in range(300)))
    asked = CircleSettings(corpus=str(text))
    climbing.climb(ClimbSettings(str(text), 1e10, vocab_size=300, seq_len=16), home, say=print, quiet=True)
    for circle, newest in ((Circle(1, asked), "g1"), (Circle(1, asked, "g1"), "g2"), (Circle(3, asked, "g1"), "g2")):
        name, climb = next(parts(circle))
        assert name == "climb" and f"{newest}/score.json" in climb(home, print)["files"]


def test_the_next_circle_needs_a_first_and_the_settings_of_a_home_stay(tmp_path):
    child = circle(tmp_path, "--again")
    assert "leave --again out" in child.communicate(timeout=120)[1] and child.returncode == 1
    begun = {"version": 1, "number": 1, "settings": {"corpus": "docstrings", "seed": 3}, "rooms": {}}
    (tmp_path / "circle.json").write_text(json.dumps(begun))
    child = circle(tmp_path, "--seed", "4")
    assert "is walked with --corpus docstrings, --seed 3" in child.communicate(timeout=120)[1] and child.returncode == 1
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
