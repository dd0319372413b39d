"""Learning: the gate's verdict on each tuned generation, which one is in service, and which is on trial."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from msgspec import Struct
from pydantic import BaseModel, Field

from tenfold.console.document import Figure, View, figure, read_json, undamaged
from tenfold.learn.options import RELEASE
from tenfold.serve.api.callers import operator_only
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.gate import key_of
from tenfold.spec.forecasts import LEVELS

if TYPE_CHECKING:
    from tenfold.learn.release import Server

GATE, MARKS = "gate.json", ("gate.json", "lineage.json")  # a folder with one of these is a tuned generation
AGAIN = "judge the generation again by `tenfold learn gate`"
DIFFERENCES = ("better", "above_popularity")  # beginnings of names of checks whose unit is that of the verdict
RANKERS = "ranking"  # folder of the home in which `tenfold rank next` makes rankers, with a release of its own
LOW, MIDDLE, HIGH = (LEVELS.index(level) for level in (0.1, 0.5, 0.9))


class Release(Struct):
    """A release.json: the generation in service, those before it, and the candidate on trial with a `share` of the users."""

    folder: str
    in_service: str
    before: list[str]
    files: list[str]
    candidate: str = ""
    share: Figure | None = None
    since: Figure | None = None


class Row(Struct):
    """A tuned generation in the list: the verdict, its difference to the old model (95 % interval), and whether it is in
    service."""

    name: str
    state: str
    passed: Figure | None = None
    better: Figure | None = None
    win_rate: Figure | None = None


class Check(Struct):
    """A check of the gate: the measured value with its 95 % interval, the limit, and its sentence."""

    name: str
    passed: Figure
    measured: Figure | None
    limit: Figure | None
    says: str


class Overview(Struct):
    """All tuned generations of a home."""

    releases: list[Release]
    generations: list[Row]
    files: list[str]
    empty: str = ""


class Learned(Struct):
    """One tuned generation. `forecast` is the forecast difference with its 80 % interval, `measured` the outcome with its 95 %
    interval."""

    row: Row
    against: str
    reason: str
    checks: list[Check]
    forecast: Figure | None
    measured: Figure | None
    files: list[str]


def names(home: Path) -> list[str]:
    """The overview, and every tuned generation."""
    return ["", *_tuned(home)]


def document(home: Path, name: str) -> Overview | Learned:
    """The overview, or one generation."""
    if name:
        return _learned(home, name)
    found, releases = _tuned(home), list(_releases(home))
    return Overview(
        releases=releases,
        generations=[_row(home, one, releases) for one in found],
        files=[file for one in releases for file in one.files],
        empty="" if found else f"tenfold learn sft MODEL --data feedback.db --name chat-1 --home {home.name}",
    )


def _tuned(home: Path) -> list[str]:
    folders = {path.parent for mark in MARKS for under in (home, home / RANKERS) for path in under.glob(f"*/{mark}")}
    return sorted(folder.relative_to(home).as_posix() for folder in folders if not folder.name.startswith("."))


def _releases(home: Path) -> Iterator[Release]:
    for folder in ("", RANKERS):
        file = f"{folder}/{RELEASE}".lstrip("/")
        if not (home / file).is_file():
            continue
        said = read_json(home / file)
        with undamaged(home / file, "release a generation again by `tenfold learn release`"):
            made = Release(folder, _name(said["path"]), [_name(one["path"]) for one in said["before"]], [file])
            if "candidate" in said:
                made.candidate = _name(said["candidate"]["path"])
                made.share, made.since = (
                    figure(home, file, "candidate.share"),
                    figure(home, file, "candidate.since", "s since 1970"),
                )
        yield made


def _name(path: str) -> str:
    """The name of a generation in the lists, from its path."""
    found = Path(path)
    return f"{RANKERS}/{found.name}" if found.parent.name == RANKERS else found.name


def _row(home: Path, name: str, releases: list[Release]) -> Row:
    state = next((f"tried on {one.share.value:.0%}" for one in releases if one.candidate == name and one.share), "")
    row = Row(name, "in service" if any(one.in_service == name for one in releases) else state)
    file = f"{name}/{GATE}"
    if (home / file).is_file():
        row.passed = figure(home, file, "passed")
        with undamaged(home / file, AGAIN):
            found = {check["name"]: i for i, check in enumerate(read_json(home / file)["checks"])}
            row.better, row.win_rate = (
                _measured(home, file, found[key]) if key in found else None for key in ("better", "win rate")
            )
    return row


def _learned(home: Path, name: str) -> Learned:
    file, row = f"{name}/{GATE}", _row(home, name, list(_releases(home)))
    files = [f"{name}/{one}" for one in (GATE, "README.md", "run.toml", "run.jsonl") if (home / name / one).is_file()]
    if not (home / file).is_file():
        return Learned(row, "", "", [], None, None, files)
    with undamaged(home / file, AGAIN):
        return _judged(home, file, row, files)


def _judged(home: Path, file: str, row: Row, files: list[str]) -> Learned:
    judged = read_json(home / file)
    checks = [
        Check(
            check["name"],
            figure(home, file, f"checks.{i}.passed"),
            _measured(home, file, i),
            None if check["limit"] is None else figure(home, file, f"checks.{i}.limit"),
            check["says"],
        )
        for i, check in enumerate(judged["checks"])
    ]
    forecast = measured = None
    if "test" in judged:
        unit, quantiles = judged["unit"], judged["quantiles"]
        forecast = figure(home, file, f"quantiles.{MIDDLE}", unit, (quantiles[LOW], quantiles[HIGH]))
        measured = figure(home, file, "test.mean", unit, judged["test"]["t_interval"])
    return Learned(row, _name(judged.get("old", "")), judged["reason"], checks, forecast, measured, files)


def _measured(home: Path, file: str, number: int) -> Figure | None:
    """The measured value of a verdict's check; None where it has none. A verdict may have no intervals."""
    judged = read_json(home / file)
    check = judged["checks"][number]
    if check["measured"] is None:
        return None
    unit = judged.get("unit", "") if check["name"].startswith(DIFFERENCES) else ""
    return figure(home, file, f"checks.{number}.measured", unit, check.get("interval"))


class ReleaseRequest(BaseModel):
    """A generation to be put in service, for all users or a share of them."""

    name: Annotated[str, Field(max_length=400)]
    share: Annotated[float, Field(gt=0, le=1)] = 1.0


class RollbackRequest(BaseModel):
    """The folder of the release: the home (""), or that of its rankers."""

    folder: Annotated[str, Field(pattern=f"^({RANKERS})?$")] = ""


def add_routes(app: FastAPI) -> None:
    """Endpoints for release and rollback, as `tenfold learn` does them: at the console's --server, with the caller's own key."""

    @app.post("/learn/release", dependencies=[Depends(operator_only)])
    async def put_in_service(body: ReleaseRequest, request: Request) -> Response:
        home: Path = app.state.options.home
        if body.name not in _tuned(home):
            raise ApiError(404, f"There is no tuned generation {body.name!r}.")
        new = home / body.name
        return await _changed(lambda learn: learn.release(new, new.parent, body.share, _server(request)))

    @app.post("/learn/rollback", dependencies=[Depends(operator_only)])
    async def go_back(body: RollbackRequest, request: Request) -> Response:
        return await _changed(lambda learn: learn.rollback(app.state.options.home / body.folder, _server(request)))


async def _changed(change: Callable[[Any], dict[str, Any]]) -> Response:
    """Make a change by `tenfold.learn.release`, which is imported here since it imports PyTorch."""
    from tenfold.learn import release

    now = await asyncio.to_thread(change, release)
    return JSONResponse({"in_service": _name(now["path"])})


def _server(request: Request) -> "Server | None":
    from tenfold.learn.release import Server

    url = request.app.state.options.server
    return Server(url, key_of(dict(request.scope["headers"]))) if url else None


VIEW = View("learn", "Learning", names, document, routes=add_routes)
