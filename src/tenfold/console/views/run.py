"""Runs: loss with its forecast band, speed, energy, use of time, faults and experts of a run, also while it trains."""

import asyncio
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated

import msgspec
from fastapi import Depends, FastAPI, Query
from fastapi.responses import Response

from tenfold.console.document import View, stamp
from tenfold.console.runs.control import resume, stop
from tenfold.console.runs.document import FILES, document
from tenfold.console.runs.find import names
from tenfold.console.runs.follow import Follow
from tenfold.serve.api.callers import operator_only
from tenfold.serve.api.errors import ApiError
from tenfold.spec.errors import TenfoldError
from tenfold.train.lock import trainer

Step = float | None
From = Annotated[Step, Query(alias="from")]
To = Annotated[Step, Query(alias="to")]
Stamps = tuple[object, ...]


def add_routes(app: FastAPI) -> None:
    """Endpoints for a range of a run's steps, for its news, and for stop and resume by operators."""
    home = app.state.options.home

    @app.get("/data/run/{name:path}.json")
    async def show(name: str, start: From = None, end: To = None) -> Response:
        try:
            text = await asyncio.to_thread(lambda: _encoded(home, name, start, end, _stamps(_folder(home, name))))
        except (TenfoldError, OSError) as error:
            raise ApiError(404, str(error)) from None
        return Response(text, media_type="application/json", headers={"Cache-Control": "no-cache"})

    @app.get("/events/run/{name:path}")
    async def follow(name: str) -> Response:
        _folder(home, name)
        return app.state.feeds.stream(f"run/{name}", partial(Follow, home, name))

    def add_change(path: str, change: Callable[[Path], str]) -> None:
        @app.post(path, dependencies=[Depends(operator_only)])
        async def act(name: str) -> dict[str, str]:
            return {"done": await asyncio.to_thread(change, _folder(home, name))}

    add_change("/runs/stop/{name:path}", stop)
    add_change("/runs/resume/{name:path}", resume)


def _folder(home: Path, name: str) -> Path:
    """A run's folder. Raises ApiError 404 where the home has no such run."""
    if not name or name not in names(home):
        raise ApiError(404, f"There is no run {name[:200]!r}.")
    return home / name


def _stamps(folder: Path) -> Stamps:
    """A value that changes when the run's document does."""
    files = (folder / file for file in FILES)
    return trainer(folder) is not None, *(stamp(path) for path in files if path.is_file())


@lru_cache(16)  # many pages may show the same run
def _encoded(home: Path, name: str, start: Step, end: Step, _: Stamps) -> bytes:
    return msgspec.json.encode(document(home, name, start, end))


VIEW = View("run", "Runs", names, document, routes=add_routes)
