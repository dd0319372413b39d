"""Recommendations explained by the user's history, and experiments between rankers. For operators only: events are personal."""

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

FILE = "events.db"  # in the home or a generation; `tenfold rank serve --events` writes it
LISTS = 50  # the newest ones that are shown
LONGEST = 200  # items of a history, at most


class Shown(Struct):
    """A list that a user was shown; `user` is the beginning of a keyed hash of the name."""

    id: str
    created: float
    user: str
    model: str
    items: list[str]


class Store(Struct):
    """An event store: its newest lists, and the experiments in all of its lists."""

    file: str
    lists: list[Shown]
    experiments: dict[str, list[dict[str, Any]]]


class Overview(Struct):
    """The event stores of a home, and its rankers, which can explain recommendations."""

    stores: list[Store]
    rankers: list[str]
    empty: str = ""


def names(home: Path) -> list[str]:
    """The overview alone: explanations are made on request."""
    return [""]


def document(home: Path, name: str) -> Overview:
    """The contents of the stores."""
    stores = [_store(home, file) for file in _stores(home)]
    return Overview(stores, _rankers(home), "" if stores else f"tenfold rank serve RANKER --events {home.name}/{FILE}")


def _stores(home: Path) -> list[str]:
    return sorted(path.relative_to(home).as_posix() for under in ("", "*/", "ranking/*/") for path in home.glob(f"{under}{FILE}"))


def _rankers(home: Path) -> list[str]:
    """Generations whose model ranks items."""
    from tenfold.rank.serving.worker import RankWorker  # imports PyTorch

    models = [path for under in ("*", "ranking/*") for path in home.glob(f"{under}/model")]
    return sorted(path.parent.relative_to(home).as_posix() for path in models if load("backends", backend_of(path)) is RankWorker)


def _store(home: Path, file: str) -> Store:
    with closing(Events.open(str(home / file))) as events:
        rows = events.newest_lists(LISTS)
        lists = [Shown(row.id, row.created, row.user_hash[:12], row.shown["model"], row.shown["items"]) for row in rows]
        found = {kind: [_experiment(one) for one in some] for kind, some in verdicts(events).items()}
    return Store(file, lists, found)


def _experiment(one: Verdict) -> dict[str, Any]:
    """A verdict with an always-valid interval of the second ranker's share of wins."""
    return {**asdict(one), "interval": always_valid_interval(one.wins[1], one.wins[0])}


class Asked(BaseModel):
    """The recommendations to explain: for a user by name, or for the user and history of a list."""

    ranker: Annotated[str, Field(max_length=400)]
    store: Annotated[str, Field(max_length=400)]
    user: Annotated[str, Field(max_length=256)] = ""
    list: Annotated[str, Field(max_length=80)] = ""


def add_routes(app: FastAPI) -> None:
    """`/recommendations/explain`: a ranker's recommendations, with the effect of each item of the history."""

    @app.post("/recommendations/explain", dependencies=[Depends(operator_only)])
    async def explained(asked: Asked) -> Response:
        return JSONResponse(await asyncio.to_thread(_explained, app.state.options.home, asked))


def _explained(home: Path, asked: Asked) -> dict[str, Any]:
    """Explain recommendations. Raises TenfoldError where there is no such store, ranker or list."""
    from tenfold.rank.explain import explain  # imports PyTorch

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
    """The history for which a list was made: that of its request, or what the store had at that time."""
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
