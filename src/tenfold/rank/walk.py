"""This room's part of the circle: rankers of made interactions and of MovieLens, each forecast from three smaller runs; one served.

Each stands in `rank-NAME` of the home, with those that it is forecast from in `rungs`, and `score.json`.
"""

import json
import math
import os
import time
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tenfold.data.interactions.interactions import open_interactions
from tenfold.data.interactions.read import MOVIELENS
from tenfold.data.interactions.splits import Split
from tenfold.data.interactions.synthetic import SYNTHETIC
from tenfold.rank.options import RankOptions
from tenfold.rank.training import train_on
from tenfold.spec.errors import NotInstalled
from tenfold.spec.files import file_sha256, write_json
from tenfold.spec.forecasts import Forecast, forecast, normal, outcome
from tenfold.train.result import RunResult

RUNGS = (8, 4, 2)  # parts of a run's epochs that it is forecast from
MODELS = {
    SYNTHETIC: RankOptions("llama", width=32, seq_len=20, epochs=5, learning_rate=0.03),
    MOVIELENS: RankOptions("llama", width=32, seq_len=50, epochs=10),
}
HELD = Split("leave-one-out")
TASK = {"split": HELD.kind, "dropout": 0.0}
SHIFT = 0.15  # how far a rate on the test lies from the one on the validation, as a share of it, since its items came later
ASKED = 16  # users for whom the server is asked


def walk(home: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Train, forecast, evaluate, serve; an earlier call that was stopped is gone on with.

    Raises TenfoldError where a package is missing; MovieLens is left out where its wheel is not installed.
    """
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise NotInstalled("Recommendations are served with FastAPI: pip install 'tenfold[serve]'.")
    small = os.environ.get("TENFOLD_CIRCLE") == "small"
    if left_out := small or find_spec("recbole") is None:
        why = "the circle is small" if small else "its wheel comes by `pip install --no-deps recbole==1.2.1`"
        say(f"rank: {MOVIELENS} is left out: {why}.")
    numbers = {source: _generation(home, source, say) for source in MODELS if source == SYNTHETIC or not left_out}
    files = [f"rank-{source}/{name}" for source in numbers for name in ("run.jsonl", "score.json")]
    return {**numbers, "served": _served(home, say), "files": [*files, f"rank-{SYNTHETIC}/served.json"]}


def _generation(home: Path, source: str, say: Callable[[str], None]) -> dict[str, Any]:
    """One ranker: the smaller runs, the forecasts, its own run, and what came."""
    directory, key = home / f"rank-{source}", f"rank/{source}"
    rungs = [_run(home, directory / "rungs" / str(n), source, 1 / n) for n in RUNGS]
    users = len(open_interactions(source, home, HELD).asked("test"))
    quantiles = doubled([rung.scores["hit_rate_10"] for rung in rungs], users)
    said = _forecast(home, f"{key}/hit_rate", "hit_rate", quantiles, [rung.directory / "run.jsonl" for rung in rungs])
    _run(home, directory, source)

    def test() -> dict[str, Any]:
        from tenfold.rank.compare import evaluated

        seen = evaluated(directory, home, "validation")["model_above"]["popularity"]["hit_rate_10"]
        sampling, mean = (seen["high"] - seen["low"]) / 2 / 1.96, seen["mean"]
        quantiles = normal(mean, math.hypot(math.sqrt(2) * sampling, SHIFT * mean))
        _forecast(home, f"{key}/above_popularity", "paired_difference", quantiles, [directory / "run.jsonl"])
        return evaluated(directory, home, "test")

    found = _once(directory / "score.json", test)
    rates = {name: of["hit_rate_10"] for name, of in found["scores"].items()}
    outcome(home, f"{key}/hit_rate", rates["model"])
    outcome(home, f"{key}/above_popularity", found["model_above"]["popularity"]["hit_rate_10"]["mean"])
    say(
        f"rank: {source}: hit rate at 10 is {rates['model']:.3f}, forecast {said.median:.3f}; popularity {rates['popularity']:.3f}."
    )
    return found


def doubled(rates: list[float], users: int) -> tuple[float, ...]:
    """Quantiles of the hit rate of a run twice as long as the last of three, each of them twice as long as the one before.

    What a doubling gains shrinks as the last two gains did. The spread is that of two samples of users, of the gain, and `SHIFT`.
    """
    first, last = rates[1] - rates[0], rates[2] - rates[1]
    gain = last * min(1.0, max(0.0, last) / first) if first > 0 else 0.0
    sampling = math.sqrt(2 * rates[2] * (1 - rates[2]) / users)
    return normal(rates[2] + gain, math.hypot(sampling, gain, SHIFT * rates[2]))


def _forecast(home: Path, key: str, kind: str, quantiles: tuple[float, ...], files: list[Path]) -> Forecast:
    data = {str(file.relative_to(home)): file_sha256(file) for file in files}
    return forecast(home, Forecast(key=key, who="rank", kind=kind, unit="share", quantiles=quantiles, data=data))


def _run(home: Path, directory: Path, source: str, part: float = 1.0) -> RunResult:
    """A finished run of a part of the epochs. Raises TenfoldError where it was stopped."""
    options = replace(MODELS[source], epochs=part * MODELS[source].epochs)
    return train_on(source, directory, home=home, options=options, task=TASK, quiet=True)


def _served(home: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """How often the server's ten best items hold what test users took next, asked over HTTP; it is told what they took."""

    def ask() -> dict[str, Any]:
        from tenfold.serve.options import EngineOptions
        from tenfold.serve.start import serving

        hits, seconds, directory = 0, [], home / f"rank-{SYNTHETIC}"
        with serving({"rank": EngineOptions(directory / "model")}, events=f"sqlite:///{directory / 'events.db'}") as server:
            interactions = open_interactions(SYNTHETIC, home, HELD)
            queries, names = interactions.held_out("test", ASKED), interactions.names
            for tokens, target in zip(queries.histories, queries.targets, strict=True):
                history, came = [names[token] for token in tokens], names[target]
                began = time.perf_counter()
                shown = _asked(server, "recommend", {"history": history})
                seconds.append(time.perf_counter() - began)
                hits += came in shown["items"]
                _asked(server, "events", {"events": [{"item": came, "id": shown["id"], "list": shown["id"]}]})
        return {"users": ASKED, "hits": hits, "median_ms": 1000 * sorted(seconds)[ASKED // 2]}

    found = _once(home / f"rank-{SYNTHETIC}" / "served.json", ask)
    say(f"rank: the server recommended what {found['hits']} of {ASKED} users took next, in {found['median_ms']:.0f} ms each.")
    return found


def _asked(server: str, route: str, body: dict[str, Any]) -> dict[str, Any]:
    """What a route of a server answers."""
    request = urllib.request.Request(f"{server}/v1/{route}", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def _once(file: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` found when it was first done, from `file`."""
    if not file.exists():
        write_json(file, work())
    return json.loads(file.read_text())
