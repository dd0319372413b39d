"""Alerts: a run that stalls or was stopped, a loan past its deadline, a gate that refuses."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from msgspec import Struct

from tenfold.console.document import read_json, stamp
from tenfold.spec.errors import TenfoldError
from tenfold.train.lock import trainer

TAIL = 1 << 13  # bytes at the end of a run's record that are read for its last events; more where its lines are long
STALLED_S = 120.0  # a run stalls after so many seconds without an event,
TIMES = 20  # or after so many times the interval between its last two events, if that is longer


class Alert(Struct, frozen=True):
    """A sentence about what is wrong, and the address within the page that shows it, such as `#/run/g1`."""

    kind: str
    sentence: str
    place: str


def alerts(home: Path, fleet: Path | None = None, now: Callable[[], float] = time.time) -> list[Alert]:
    """The alerts of a home, and of the fleet in the home `fleet` where that is another. `now` returns seconds since the epoch."""
    runs = (alert for file in sorted(home.glob("*/run.jsonl")) if (alert := _run(file, now())))
    return [*runs, *_loans(fleet or home, now()), *_gates(home)]


def _run(file: Path, now: float) -> Alert | None:
    """The alert of a run that has not ended, and that no process trains or that has written nothing for long."""
    try:
        events = _last_events(file, stamp(file))
    except OSError:  # the run was deleted meanwhile
        return None
    if not events or events[-1].get("event") == "end":
        return None
    name, place = file.parent.name, f"#/run/{file.parent.name}"
    step = next((event["step"] for event in reversed(events) if "step" in event), 0)
    if trainer(file.parent) is None:
        return Alert("run", f"The run {name} was stopped at step {step}: `tenfold resume {file.parent}` continues it.", place)
    times = [event["time"] for event in events[-2:]]
    silent = now - times[-1]
    if silent > max(STALLED_S, TIMES * (times[-1] - times[0])):
        return Alert("run", f"The run {name} stalls: it has written nothing since step {step}.", place)
    return None


@lru_cache(4096)
def _last_events(file: Path, _: tuple[int, int]) -> list[dict[str, Any]]:
    """The last events of a record, two at least if it has them; read once for each state of the file."""
    with file.open("rb") as stream:
        size, tail = stream.seek(0, os.SEEK_END), TAIL
        while True:
            stream.seek(max(0, size - tail))
            events = _events(stream.read())
            if len(events) > 1 or tail >= size:
                return events
            tail *= 2


def _events(text: bytes) -> list[dict[str, Any]]:
    """The events with a time in the complete lines of a text."""
    events = []
    for line in text.split(b"\n"):
        with suppress(ValueError):  # an incomplete line
            events.append(json.loads(line))
    return [event for event in events if isinstance(event, dict) and isinstance(event.get("time"), float | int)]


def _loans(home: Path, now: float) -> Iterator[Alert]:
    """Alerts of slots whose loans are past their deadlines, while a controller runs."""
    if not (home / "fleet" / "ledger.db").exists():
        return
    from tenfold.fleet.operate.operate import is_controlled, status

    if not is_controlled(home):
        return
    for slot in status(home)["slots"]:
        if slot["until"] is not None and slot["until"] < now:
            yield Alert("loan", f"{slot['slot']} is late: {slot['role']} had it until {_clock(slot['until'])}.", "#/fleet")


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M", time.localtime(seconds))


def _gates(home: Path) -> Iterator[Alert]:
    for file in sorted(home.glob("*/gate.json")):
        try:
            judged = read_json(file)
            if judged["passed"] is False:
                yield Alert("gate", f"The gate refuses {file.parent.name}: {judged['reason']}", f"#/generations/{file.parent.name}")
        except (TenfoldError, KeyError, TypeError):
            continue
