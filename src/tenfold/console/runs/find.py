"""Finds the runs of a home, and whether each one is training, finished, stopped or interrupted."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tenfold.console.document import Figure, stamp
from tenfold.console.runs.record import Event
from tenfold.train.lock import trainer

FILE = "run.jsonl"
DEPTH = 3  # folders below the home: a rung is HOME/g1/ladder/RUNG
OTHER = {"checkpoint", "model", "ranks", "failures", "tensorboard"}  # folders of a run that hold no other runs
TAIL = 1 << 16  # bytes at the end of a record that are read for its last events; more where its lines are long


class Ends(NamedTuple):
    """The end of a record: the name of its last event, and its last step."""

    last_kind: str
    step: Event | None


def names(home: Path) -> list[str]:
    """The overview "", and the relative path of every folder of the home that has a `run.jsonl`."""
    return ["", *sorted(_runs(home, "", DEPTH))]


def _runs(folder: Path, name: str, depth: int) -> Iterator[str]:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == FILE and name and entry.is_file(follow_symlinks=False):
                yield name
            elif depth and entry.name not in OTHER and not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                yield from _runs(folder / entry.name, f"{name}/{entry.name}".lstrip("/"), depth - 1)


def ends(path: Path) -> Ends:
    """The end of a record, read once for each state of the file. Raises OSError where it cannot be read."""
    return _ends(path, stamp(path))


@lru_cache(4096)
def _ends(path: Path, _: tuple[int, int]) -> Ends:
    with path.open("rb") as stream:
        lines = sum(piece.count(b"\n") for piece in iter(lambda: stream.read(1 << 20), b""))
        size, tail = stream.tell(), TAIL
        while True:
            stream.seek(max(0, size - tail))
            last = _last_events(stream.read(min(size, tail)), lines)
            step = next((one for one in last if one[1].get("event") == "step"), None)
            if step is not None or tail >= size:
                return Ends(str(last[0][1].get("event", "")) if last else "", step)
            tail *= 2


def _last_events(text: bytes, lines: int) -> list[Event]:
    """The events in the complete lines of a text, the last one first; `lines` is the number of its last complete line."""
    last: list[Event] = []
    for back, line in enumerate(reversed(text[: text.rfind(b"\n") + 1].split(b"\n")[:-1])):
        with suppress(ValueError):
            if isinstance(event := json.loads(line), dict):
                last.append((lines - back, event))
    return last


def state(folder: Path, last_kind: str) -> str:
    """The state of a run, given the name of its last event: training, finished, stopped, or interrupted (ended without an
    event)."""
    if trainer(folder) is not None:
        return "training"
    return {"end": "finished", "stopped": "stopped"}.get(last_kind, "interrupted")


def figure_of(name: str, found: Event | None, field: str, unit: str = "") -> Figure | None:
    """The figure of a field of an event in a run's record; None where the field is not a number."""
    if found is None or not isinstance(found[1].get(field), int | float):
        return None
    return Figure(found[1][field], f"{name}/{FILE}", f"{found[0]}:{field}", unit)
