"""Recommendations explained by the history, and experiments between two rankers; for operators, since events are personal."""

import asyncio
import time
from contextlib import closing
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse, Response
from msgspec import Struct
from pydantic import BaseModel, Field

from tenfold.console.document import View
from tenfold.learn.statistics import always_valid_interval
from tenfold.rank.events.store import Events, Taken
from tenfold.rank.experiment import Verdict, verdicts
from tenfold.serve.api.callers import operator_only
from tenfold.serve.backends.backend import backend_of
from tenfold.spec.errors import TenfoldError
from tenfold.spec.plugins import load

if TYPE_CHECKING:
    from tenfold.rank.ranker import Ranker

FILE = "events.db"  # of the home or of a generation, as `tenfold rank serve --events` is given it
LISTS = 50  # the newest that are named
LONGEST = 200  # items of a history that is explained


class Shown(Struct):
    """A list that somebody was shown; `user` is the beginning of a keyed hash."""

    id: str
    created: float
    user: str
    model: str
    items: list[str]


class Store(Struct):
    """An event store: its newest lists, and the experiments among all of them."""

    file: str
    lists: list[Shown]
    experiments: dict[str, list[dict[str, Any]]]


class Overview(Struct):
    """The event stores of a home, and the rankers that can explain."""

    stores: list[Store]
    rankers: list[str]
    empty: str = ""


def names(home: Path) -> list[str]:
    """The overview alone: an explanation is made when it is asked for."""
    return [""]


def document(home: Path, name: str) -> Overview:
    """What the stores hold."""
    stores = [_store(home, file) for file in _stores(home)]
    return Overview(stores, _rankers(home), "" if stores else f"tenfold rank serve RANKER --events {home.name}/{FILE}")


def _stores(home: Path) -> list[str]:
    return sorted(path.relative_to(home).as_posix() for under in ("", "*/", "ranking/*/") for path in home.glob(f"{under}{FILE}"))


def _rankers(home: Path) -> list[str]:
    """Generations whose model ranks items."""
    from tenfold.rank.serving.worker import RankWorker  # brings PyTorch along

    models = [path for under in ("*", "ranking/*") for path in home.glob(f"{under}/model")]
    return sorted(path.parent.relative_to(home).as_posix() for path in models if load("backends", backend_of(path)) is RankWorker)


def _store(home: Path, file: str) -> Store:
    with closing(Events.open(str(home / file))) as events:
        rows = events.newest_lists(LISTS)
        lists = [Shown(row.id, row.created, row.user_hash[:12], row.shown["model"], row.shown["items"]) for row in rows]
        found = {kind: [_experiment(one) for one in some] for kind, some in verdicts(events).items()}
    return Store(file, lists, found)


def _experiment(one: Verdict) -> dict[str, Any]:
    """A verdict with the interval of the second one's share of wins, which holds however often it is looked at."""
    return {**asdict(one), "interval": always_valid_interval(one.wins[1], one.wins[0])}


class Asked(BaseModel):
    """Whose recommendations are explained: those of a user by name, or of the user and history of a list."""

    ranker: Annotated[str, Field(max_length=400)]
    store: Annotated[str, Field(max_length=400)]
    user: Annotated[str, Field(max_length=256)] = ""
    list: Annotated[str, Field(max_length=80)] = ""


def add_routes(app: FastAPI) -> None:
    """`/recommendations/explain`: what a ranker recommends, with what each item of the history adds to it."""

    @app.post("/recommendations/explain", dependencies=[Depends(operator_only)])
    async def explained(asked: Asked) -> Response:
        return JSONResponse(await asyncio.to_thread(_explained, app.state.options.home, asked))


def _explained(home: Path, asked: Asked) -> dict[str, Any]:
    """Raises TenfoldError where there is no such store, ranker or list."""
    from tenfold.rank.explain import explain  # brings PyTorch along

    if asked.store not in _stores(home) or asked.ranker not in _rankers(home):
        raise TenfoldError(f"The home has no ranker {asked.ranker!r} with the event store {asked.store!r}.")
    with closing(Events.open(str(home / asked.store))) as events:
        taken = _of_list(events, asked.list) if asked.list else events.history(asked.user, LONGEST)
    ranker = _ranker(home / asked.ranker, (home / asked.ranker / "model" / "config.json").stat().st_mtime_ns)
    times = [one.time for one in taken] if all(one.time for one in taken) else []
    history = ranker.history([one.item for one in taken], times, time.time() if times else None)
    items = [{**one._asdict(), "reasons": [reason._asdict() for reason in one.reasons]} for one in explain(ranker, history)]
    return {"history": [one._asdict() for one in taken], "known": len(history.items), "items": items}


def _of_list(events: Events, name: str) -> list[Taken]:
    """The history that a list was made for: what its request gave, or what the store had then."""
    row = next((row for row in events.newest_lists(LISTS) if row.id == name), None)
    if row is None:
        raise TenfoldError(f"The list {name} is not among the newest {LISTS}.")
    if (given := row.shown.get("history")) is not None:
        times = row.shown.get("times") or [0.0] * len(given)
        return [Taken(item, time) for item, time in zip(given, times, strict=True)][-LONGEST:]
    return events.history_of(row.user_hash, LONGEST, before=row.created)


@lru_cache(1)
def _ranker(folder: Path, _: int) -> "Ranker":
    from tenfold.rank.ranker import Ranker

    return Ranker.load(folder)


VIEW = View("recommendations", "Recommendations", names, document, private=True, routes=add_routes)
