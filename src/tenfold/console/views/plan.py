"""Plans: what each needs, with ranges, and the planner's answers for other GPUs, days, prices, places and accelerators."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response

from tenfold.console.document import Computed, Figure, View, figure, read_json, undamaged, within
from tenfold.console.views.plan_sections import sections
from tenfold.console.views.planner import Asked, answer, offered
from tenfold.plan.document import SCHEMA
from tenfold.serve.api.errors import ApiError
from tenfold.spec.errors import TenfoldError
from tenfold.spec.versions import require_version

FILE = "plan.json"
AGAIN = "make it again by `tenfold plan`"
WAITING = 8  # questions that may wait, since the planner answers one at a time
LISTED = (
    ("model", "model.name", ""), ("compute", "model.flops", "FLOPs"), ("GPUs", "machine.gpus", ""),
    ("accelerator", "machine.name", ""), ("days by the clock", "time.wall_days", "days"), ("rented for", "cost.rent_usd", "USD"),
    ("energy", "power.energy_mwh", "MWh"),
)  # fmt: skip


def names(home: Path) -> list[str]:
    """The overview, and every plan by the name of its folder; a plan in the home itself by that of its file."""
    return ["", *_files(home)]


def document(home: Path, name: str) -> dict[str, Any]:
    """All plans with their main figures, or one plan."""
    files = _files(home)
    if name:
        return _one(home, files[name])
    command = f"tenfold plan --after llama-3.1-8b --times 10 --gpus 1024 --home {home.name} --out {home.name}/plan"
    rows = [{"name": one, **_in_short(home, file)} for one, file in files.items()]
    return {"plans": rows, "heads": [head for head, _, _ in LISTED], "empty": "" if files else command}


def _files(home: Path) -> dict[str, str]:
    """The plans of a home by their names, the newest first."""
    found = sorted([*home.glob(FILE), *home.glob(f"*/{FILE}")], key=lambda path: -path.stat().st_mtime)
    return {FILE if path.parent == home else path.parent.name: str(path.relative_to(home)) for path in found}


def _in_short(home: Path, file: str) -> dict[str, Any]:
    """The row of a plan: its figures, or the sentence why it has none."""
    try:
        plan = _read(home / file)
        with undamaged(home / file, AGAIN):
            return {"figures": [_figure(home, file, plan, key, unit) for _, key, unit in LISTED]}
    except TenfoldError as error:
        return {"failed": str(error)}


def _one(home: Path, file: str) -> dict[str, Any]:
    plan = _read(home / file)
    with undamaged(home / file, AGAIN):
        made = sections(plan, lambda key, unit: _figure(home, file, plan, key, unit))
        return {**made, "offered": offered(plan), "files": [file, *_page(home, file)]}


def _page(home: Path, file: str) -> list[str]:
    beside = str(Path(file).with_suffix(".html"))
    return [beside] if (home / beside).is_file() else []


def _read(path: Path) -> dict[str, Any]:
    """Read a plan of training. Raises TenfoldError for another file, such as a plan of serving."""
    plan = read_json(path)
    if not isinstance(plan, dict) or "schema" not in plan:
        raise TenfoldError(f"{path} is no plan of training, so the console cannot show it: make one by `tenfold plan --out`.")
    require_version(plan["schema"], (SCHEMA,), path, AGAIN)
    return plan


def _figure(home: Path, file: str, plan: dict[str, Any], key: str, unit: str) -> Figure:
    """The figure under a key; of a range its middle, with the ends as interval."""
    found = within(plan, key)
    if isinstance(found, dict):
        return figure(home, file, f"{key}.mid", unit, (found["low"], found["high"]))
    return figure(home, file, key, unit)


def _computed(plan: dict[str, Any], key: str, unit: str) -> Computed:
    found = within(plan, key)
    if isinstance(found, dict):
        return Computed(found["mid"], "by the planner", unit, found["low"], found["high"])
    return Computed(found, "by the planner", unit)


def _routes(app: FastAPI) -> None:
    """The endpoint of the planner. It answers one question at a time; up to `WAITING` wait."""
    turn, waiting = asyncio.Semaphore(1), 0
    home: Path = app.state.options.home

    def ask(name: str, asked: Asked) -> bytes:
        files = _files(home)
        if name not in files:
            raise TenfoldError(f"There is no plan {name[:200]!r}.")
        with undamaged(home / files[name], AGAIN):
            plan = answer(home, files[name], _read(home / files[name]), asked)
            return msgspec.json.encode(sections(plan, lambda key, unit: _computed(plan, key, unit)))

    @app.get("/ask/plan/{name:path}")
    async def planner(name: str, request: Request) -> Response:
        nonlocal waiting
        if waiting >= WAITING:
            raise ApiError(503, "The planner is busy: try again in a moment.")
        waiting += 1
        try:
            asked = msgspec.convert(dict(request.query_params), Asked, strict=False)
            async with turn:
                return Response(await asyncio.to_thread(ask, name, asked), media_type="application/json")
        except (TenfoldError, msgspec.ValidationError) as error:
            raise ApiError(400, str(error)) from None
        finally:
            waiting -= 1


VIEW = View("plan", "Plan", names, document, routes=_routes)
