"""The circle of a home, room by room, and the record of its forecasts with their outcomes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from tenfold.console.document import Figure, figure, read_json, undamaged
from tenfold.spec.forecasts import FILE, LEVELS

ROOMS = ("climb", "plan", "sites", "learn", "rank", "fleet")
CIRCLE = "circle.json"


class Room(Struct):
    """A room of the circle: its results and files, or a sentence why there are none (`why`)."""

    name: str
    state: str
    why: str = ""
    numbers: dict[str, Figure] = {}
    files: list[str] = []


class Said(Struct):
    """A forecast of the record with its 80 % interval, and its outcome. `factor` is how many times wider than its maker stated the
    interval was made, because of so many earlier `outcomes`."""

    key: str
    kind: str
    made: str
    forecast: Figure
    factor: Figure | None = None
    outcomes: int = 0
    measured: Figure | None = None
    inside: bool | None = None


class Record(Struct):
    """All forecasts of a home in the order in which they were made: `came` of them have an outcome, `held` of these are in the
    interval."""

    rows: list[Said]
    came: int
    held: int


def rooms(home: Path) -> list[Room]:
    """The rooms in the order of the circle, then others; an empty list where no circle was run."""
    if not (home / CIRCLE).exists():
        return []
    found = read_json(home / CIRCLE).get("rooms", {})
    return [_room(home, name, found.get(name)) for name in dict.fromkeys([*ROOMS, *found])]


def _room(home: Path, name: str, said: Any) -> Room:
    if not isinstance(said, dict):
        return Room(name, "waiting", "The circle has not run this room yet.")
    for state in ("failed", "skipped"):
        if said.get(state):
            return Room(name, state, str(said[state]))
    numbers = {key: figure(home, CIRCLE, f"rooms.{name}.numbers.{key}") for key in _flat(said.get("numbers", {}))}
    files = [file for file in said.get("files", []) if isinstance(file, str)]
    return Room(name, "done", numbers=numbers, files=files)


def _flat(numbers: dict[str, Any], before: str = "") -> Iterator[str]:
    """The dotted keys of nested numbers; lists are left out."""
    for key, value in numbers.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        elif not isinstance(value, list):
            yield f"{before}{key}"


def record(home: Path) -> Record:
    """The record of forecasts, each figure with its line in the file. Raises TenfoldError for a damaged file."""
    found: dict[str, Said] = {}
    low, middle, high = (LEVELS.index(level) for level in (0.1, 0.5, 0.9))
    with undamaged(home / FILE, "restore the file, or remove the damaged line"):
        for number, line in _numbered(home / FILE):
            if "forecast" in line:
                made = line["forecast"]
                q = made["quantiles"]
                key = f"{number}:forecast.quantiles.{middle}"
                shown = Figure(q[middle], FILE, key, made["unit"], q[low], q[high])
                learnt = (made.get("learnt") or {}).get("outcomes", 0)
                factor = Figure(made["learnt"]["factor"], FILE, f"{number}:forecast.learnt.factor") if learnt else None
                found.setdefault(made["key"], Said(made["key"], made["kind"], made.get("made", ""), shown, factor, learnt))
            elif "outcome" in line and (said := found.get(line["outcome"]["key"])) and said.forecast.low is not None:
                value = line["outcome"]["measured"]
                said.measured = Figure(value, FILE, f"{number}:outcome.measured", said.forecast.unit)
                said.inside = said.forecast.low <= value <= (said.forecast.high or 0)
    rows = list(found.values())
    return Record(rows, sum(one.measured is not None for one in rows), sum(bool(one.inside) for one in rows))


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their line numbers from 1; incomplete lines are skipped."""

    for number, line in enumerate(path.read_bytes().split(b"\n") if path.exists() else (), start=1):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield number, found
