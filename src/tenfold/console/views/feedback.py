"""Feedback, for operators: how much arrives and for which reasons, what the next training set would hold, and the present trial."""

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

FILE = "feedback.db"  # in the home; `tenfold serve --feedback` writes it
REASONS = 50  # the most frequent ones that are shown


class Arrived(Struct):
    """Counts of feedback by kind on each day (days since 1970), and the reasons given with ratings, with their counts."""

    days: list[int]
    kinds: dict[str, list[int]]
    totals: dict[str, int]
    users: int
    reasons: list[tuple[str, int]]


class Overview(Struct):
    """The overview. `trial` is the output of `tenfold learn trial --json` where a candidate is on trial."""

    source: str
    arrived: Arrived | None
    trial: dict[str, Any] | None
    empty: str = ""


def names(home: Path) -> list[str]:
    """The overview alone: the next training set is counted only on request."""
    return [""]


def document(home: Path, name: str) -> Overview:
    """How much feedback arrived, and the present trial."""
    if not (home / FILE).is_file():
        return Overview(FILE, None, None, f"tenfold serve MODEL --feedback {home.name}/{FILE}")
    from tenfold.learn.trial import trial  # imports PyTorch

    going = None
    with suppress(TenfoldError):  # no candidate is on trial
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
    """`/feedback/next`: the sets that `tenfold learn next` would train on and be judged on now, from the same function."""

    @app.get("/feedback/next", dependencies=[Depends(operator_only)])
    async def next_set(kind: Kind) -> Response:
        home: Path = app.state.options.home
        share = TuneSettings().held_out
        _, people = await asyncio.to_thread(gathered, str(home / FILE), home, share, kind)
        users = {part: len(of) for part, of in people["users"].items()}
        return JSONResponse({**people, "users": users, "deleted_users_still_in": len(people["deleted_users_still_in"])})


VIEW = View("feedback", "Feedback", names, document, private=True, routes=add_routes)
