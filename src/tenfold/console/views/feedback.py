"""What people say, for operators: how much arrives and why, what the next set would hold, and a trial as it stands."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse, Response
from msgspec import Struct

from tenfold.console.document import View
from tenfold.learn.data import gathered, open_feedback
from tenfold.learn.options import Kind, TuneSettings
from tenfold.serve.api.callers import operator_only
from tenfold.spec.errors import TenfoldError

FILE = "feedback.db"  # of the home, as `tenfold serve --feedback` is given it
REASONS = 50  # the most frequent


class Arrived(Struct):
    """What came on each day, in days since 1970, and the reasons that were given for thumbs with how often."""

    days: list[int]
    kinds: dict[str, list[int]]
    totals: dict[str, int]
    users: int
    reasons: list[tuple[str, int]]


class Overview(Struct):
    """All that people said. `trial` is what `tenfold learn trial --json` says, where a candidate is tried."""

    source: str
    arrived: Arrived | None
    trial: dict[str, Any] | None
    empty: str = ""


def names(home: Path) -> list[str]:
    """The overview alone: what the next set would hold is made when it is asked for."""
    return [""]


def document(home: Path, name: str) -> Overview:
    """How much came, and the trial that goes on."""
    if not (home / FILE).is_file():
        return Overview(FILE, None, None, f"tenfold serve MODEL --feedback {home.name}/{FILE}")
    from tenfold.learn.trial import trial  # brings PyTorch along

    going = None
    with suppress(TenfoldError):  # no candidate is tried
        going = trial(home, str(home / FILE))
    return Overview(FILE, _arrived(home), going)


def _arrived(home: Path) -> Arrived:
    feedback = open_feedback(str(home / FILE))
    found = feedback.by_day()
    all_days = {day for count in found.values() for day in count}
    days = list(range(min(all_days), max(all_days) + 1)) if all_days else []
    return Arrived(
        days=days,
        kinds={kind: [count[day] for day in days] for kind, count in found.items()},
        totals={kind: count.total() for kind, count in found.items()},
        users=len(feedback.users()),
        reasons=feedback.reasons().most_common(REASONS),
    )


def add_routes(app: FastAPI) -> None:
    """`/feedback/next`: what `tenfold learn next` would learn and be judged on now, by the function that it calls."""

    @app.get("/feedback/next", dependencies=[Depends(operator_only)])
    async def next_set(kind: Kind) -> Response:
        home: Path = app.state.options.home
        share = TuneSettings().held_out
        _, people = await asyncio.to_thread(gathered, str(home / FILE), home, share, kind)
        users = {part: len(of) for part, of in people["users"].items()}
        return JSONResponse({**people, "users": users, "deleted_users_still_in": len(people["deleted_users_still_in"])})


VIEW = View("feedback", "Feedback", names, document, private=True, routes=add_routes)
