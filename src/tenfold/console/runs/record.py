"""A `run.jsonl` as columns in memory. After the first read only appended lines are read, so that long runs can be followed."""

import json
import math
import os
import threading
from collections import OrderedDict
from contextlib import suppress
from itertools import starmap
from operator import attrgetter
from pathlib import Path
from struct import Struct as Packed
from struct import error as NotPacked
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import readable

FIELDS = ("loss", "grad_norm", "tokens_per_s", "mfu", "watts", "learning_rate", "expert_load_max")
# A logged step: the offset of its line in the file, the number of the line from 1, and the fields for pictures, NaN where missing.
ROW = np.dtype([("step", "i8"), ("offset", "i8"), ("line", "i4"), *((name, "f4") for name in FIELDS)])
CHUNK = 1 << 20  # bytes that are parsed at a time
MOST_ROWS = 4_000_000  # of all records together that are kept in memory


class Line(Struct, gc=False):
    """The fields that are parsed of each line."""

    event: str = ""
    step: Annotated[int, Meta(le=2**53)] = -1  # so that it is exact as a float
    loss: float | None = math.nan
    grad_norm: float | None = math.nan
    tokens_per_s: float | None = math.nan
    mfu: float | None = math.nan
    watts: float | None = math.nan
    learning_rate: float | None = math.nan
    expert_load_max: float | None = math.nan


Event = tuple[int, dict[str, Any]]  # the number of its line from 1, and its object
DECODER = msgspec.json.Decoder(Line)
EVENT, NUMBERS = attrgetter("event"), attrgetter("step", *FIELDS)
PACK = Packed(f"={1 + len(FIELDS)}d").pack


class Record:
    """The steps of a `run.jsonl`, and its other events as (number of the line, event). `replaced` counts how often the file was
    replaced, as happens when a run resumes from a checkpoint."""

    def __init__(self, path: Path):
        self.path, self.replaced = path, -1
        self._lock = threading.Lock()
        self._forget(inode=0)

    def _forget(self, inode: int) -> None:
        self.replaced += 1
        self._inode, self._size, self._read, self._lines, self._count = inode, 0, 0, 0, 0
        self._rows = np.empty(0, ROW)
        self.events: list[Event] = []

    @property
    def rows(self) -> np.ndarray:
        """The logged steps, an array [rows] of dtype `ROW`."""
        return self._rows[: self._count]

    def read(self) -> "Record":
        """Read new complete lines. Raises TenfoldError where the file cannot be read."""
        with self._lock, readable(self.path), self.path.open("rb") as stream:
            found = os.fstat(stream.fileno())
            if found.st_ino != self._inode or found.st_size < self._read:
                self._forget(found.st_ino)
            self._size = found.st_size
            stream.seek(self._read)
            while text := stream.read(CHUNK) + stream.readline():
                whole = text if text.endswith(b"\n") else text[: text.rfind(b"\n") + 1]
                self._take(whole)
                if len(whole) < len(text):  # a line that is being written
                    break
        return self

    def event(self, name: str) -> Event | None:
        """The last event of this name; None where there is none."""
        return next((found for found in reversed(self.events) if found[1].get("event") == name), None)

    @property
    def last_kind(self) -> str:
        """The name of the last line's event, such as "step"; empty where there is none."""
        line, event = self.events[-1] if self.events else (0, {})
        is_step = self._count > 0 and self.rows["line"][-1] > line
        return "step" if is_step else str(event.get("event", ""))

    def last_step(self) -> Event | None:
        """The last logged step. Raises TenfoldError where the file was replaced."""
        return (int(self.rows["line"][-1]), self.row(-1)) if self._count else None

    def row(self, index: int) -> dict[str, Any]:
        """The object of a logged step, read from the file. Raises TenfoldError where the file was replaced."""
        with readable(self.path), self.path.open("rb") as stream:
            stream.seek(int(self.rows["offset"][index]))
            with suppress(ValueError):
                found = json.loads(stream.readline())
                if isinstance(found, dict):
                    return found
        raise TenfoldError(f"{self.path} was replaced while it was read: try again.")

    def _take(self, text: bytes) -> None:
        """Add complete lines."""
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
        starts = np.append(0, ends + 1)
        parsed = _parse(text, len(ends))
        numbers = _numbers(parsed)
        is_step = (numbers[:, 0] >= 0) & _named(parsed, "step")
        for i in np.flatnonzero(~is_step):
            with suppress(ValueError):
                event = json.loads(text[starts[i] : ends[i]])
                if isinstance(event, dict):
                    self.events.append((self._lines + int(i) + 1, event))
        steps = np.flatnonzero(is_step)
        more = self._room(len(steps), len(text))
        more["offset"], more["line"] = self._read + starts[steps], self._lines + steps + 1
        for column, name in enumerate(("step", *FIELDS)):
            more[name] = numbers[steps, column]
        self._count += len(steps)
        self._lines += len(ends)
        self._read += len(text)

    def _room(self, more: int, size: int) -> np.ndarray:
        """`more` new rows at the end of the array, which were read from `size` bytes. The array grows to the expected size of the
        whole file."""
        if self._count + more > len(self._rows):
            whole = more * (self._size - self._read) // max(1, size)
            larger = np.empty(self._count + max(whole, more) + self._count // 16, ROW)
            larger[: self._count] = self.rows
            self._rows = larger
        return self._rows[self._count : self._count + more]


def _parse(text: bytes, lines: int) -> list[Line]:
    """A Line for each line of the text; an empty one for a line that is damaged or has other types."""
    with suppress(msgspec.MsgspecError, UnicodeDecodeError):
        parsed = DECODER.decode_lines(text)
        if len(parsed) == lines:
            return parsed
    return [_parse_one(line) for line in text.split(b"\n")[:lines]]


def _parse_one(line: bytes) -> Line:
    try:
        return DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Line()


def _named(lines: list[Line], event: str) -> np.ndarray:
    """A mask [lines] of the lines with this event; usually all of them."""
    found = list(map(EVENT, lines))
    return np.ones(len(lines), bool) if found.count(event) == len(lines) else np.array([one == event for one in found], bool)


def _numbers(lines: list[Line]) -> np.ndarray:
    """The step and the fields [lines, 1 + fields] in float64, NaN where a line has no value."""
    try:
        return np.frombuffer(b"".join(starmap(PACK, map(NUMBERS, lines)))).reshape(len(lines), 1 + len(FIELDS))
    except NotPacked:  # a field is None, which becomes NaN below
        return np.array(list(map(NUMBERS, lines)), float)


class Records:
    """A cache of records, which drops the least recently used ones beyond `most_rows` rows."""

    def __init__(self, most_rows: int = MOST_ROWS):
        self._most, self._lock = most_rows, threading.Lock()
        self._kept: OrderedDict[Path, Record] = OrderedDict()

    def read(self, path: Path) -> Record:
        """The present record of a file. Raises TenfoldError where it cannot be read."""
        with self._lock:
            record = self._kept.setdefault(path, Record(path))
            self._kept.move_to_end(path)
        record.read()
        with self._lock:
            while len(self._kept) > 1 and sum(len(one.rows) for one in self._kept.values()) > self._most:
                self._kept.popitem(last=False)
        return record
