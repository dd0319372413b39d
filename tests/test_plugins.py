"""Packages from outside add a family, a task, an accelerator, a command and a route, and `tenfold` works with all of them.

The first three are those of `docs/guides/plugin`.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from packages import install, install_example

from tenfold.train.metrics import read_metrics

COMMAND = '''
from typing import Annotated

from msgspec import Meta


def greet(name: Annotated[str, Meta(description="Who.")], /, *, times: Annotated[int, Meta(description="How often.")] = 1) -> None:
    """Say hello.

    Example: tenfold tiny greet Ann
    """
    print(f"hello {name} " * times)
'''

ROUTE = """
from fastapi import APIRouter

from tenfold.serve.api.dependencies import ServedModels

router = APIRouter()


@router.get("/v1/device")
async def device(models: ServedModels) -> dict[str, str]:
    return {"device": (await models.get("")).options.device}
"""

RUN = """
tokens = 4096
device = "tiny"
dtype = "bfloat16"
model = {{ width = 32, family = "parallel" }}
task = {{ name = "copying", words = 20 }}
data = {{ corpus = "{corpus}", seq_len = 32, batch_size = 8 }}
log = {{ every = 1 }}
"""

PARTS = {"commands": {"tiny.greet": "tiny_command:greet"}, "routes": {"device": "tiny_route:router"}}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """That of a process which finds the packages."""
    site = tmp_path_factory.mktemp("site")
    install(site, "tiny", {"tiny_command": COMMAND, "tiny_route": ROUTE}, PARTS)
    install_example(site)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))}


@pytest.fixture(scope="module")
def tenfold(environment):
    def call(*words):
        done = subprocess.run([sys.executable, "-m", "tenfold", *map(str, words)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@pytest.fixture(scope="module")
def run(tenfold, corpus, tmp_path_factory):
    """A finished run of the package's family, by its task, on its accelerator."""
    home = tmp_path_factory.mktemp("home")
    (home / "run.toml").write_text(RUN.format(corpus=corpus.directory))
    tenfold("train", home / "run.toml", "--home", home, "--json")
    return home / "run"


def test_its_family_trains_by_its_task_on_its_accelerator(run):
    start, *steps = (row for row in read_metrics(run / "run.jsonl") if row["event"] in ("start", "step", "end"))
    end = steps.pop()
    assert start["model"]["family"] == "parallel" and start["device"] == "cpu"
    assert start["mfu_of"] == "Tiny chip's published dense bf16 rate"
    assert len(steps) == 16 and {row["words"] for row in steps} == {20}
    assert steps[0]["loss"] == pytest.approx(math.log(400), rel=0.03) and end["loss"] < steps[0]["loss"]
    assert end["scores"] == {"copied": pytest.approx(math.exp(-end["loss"]))} and end["flops"] == 1e6 * 4096
    assert end["mfu"] == pytest.approx(1e6 * end["tokens_per_s"] / 0.5e12)
    assert json.loads((run / "model" / "config.json").read_text())["model_type"] == "parallel"


def _json(url, body=None):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def _wait_until_healthy(server, url):
    while server.poll() is None:
        try:
            return _json(f"{url}/health")
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server ended")


def test_its_model_is_served_on_its_accelerator_beside_its_route(run, environment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tenfold", "serve", str(run), "--port", str(port), "--device", "tiny", "--feedback", ""]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        _wait_until_healthy(server, url)
        assert _json(f"{url}/v1/device") == {"device": "tiny"}
        asked = {"prompt": "def ", "max_tokens": 5, "temperature": 0, "ignore_eos": True}
        assert _json(f"{url}/v1/completions", asked)["usage"]["completion_tokens"] == 5
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def test_its_command_runs_and_is_listed(tenfold):
    assert tenfold("tiny", "greet", "Ann", "--times", "2") == "hello Ann hello Ann \n"
    assert "tiny" in tenfold("--help") and "Say hello." in tenfold("tiny", "--help")


def test_plans_take_its_rates_power_and_price(tenfold):
    plan = json.loads(tenfold("plan", "--flops", "1e18", "--gpus", "8", "--accelerator", "tiny", "--json"))
    step, cost = plan["step"], plan["cost"]
    assert plan["machine"]["accelerator"] == "tiny"
    assert step["tflops_per_gpu"] / step["mfu"] == pytest.approx(0.5)
    assert 0.25 * 350 <= plan["power"]["board_w"]["low"] <= plan["power"]["board_w"]["high"] <= 350
    assert cost["rent_usd"]["mid"] / cost["gpu_hours"]["mid"] == pytest.approx(1.0)
    assert cost["rent_usd_per_gpu_hour"] == {"low": 0.9, "mid": 1.0, "high": 1.2}
