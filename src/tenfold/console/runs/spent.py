"""The use of a run's time so far, from a few lines of its `time.jsonl`, which has a line for each logged step."""

import json
import mmap
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tenfold.train.goodput import goodput_of

BEGAN = b'"began"'
Row = dict[str, Any]


def read_spent(path: Path) -> Row:
    """The result of `tenfold.train.goodput.read_goodput`, without parsing every line; empty where there is no file."""
    with suppress(OSError, ValueError), path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return goodput_of(_needed(text, text.rfind(b"\n")))
    return {}


def _needed(text: mmap.mmap, end: int) -> Iterator[Row]:
    """The rows of each start that the result depends on: its first row, the last one that the next start kept, and its last row.
    `end` is the end of the last complete line."""
    begins = list(_begins(text, end))
    for start, following in zip(begins, [*begins[1:], None], strict=True):
        last, _ = _row(text, start, (following or end + 1) - 2)
        needed = {start, last}
        if following is not None:
            kept = _row(text, following, following)[1]["step"]
            beyond = start + bisect_right(range(start, last + 1), kept, key=lambda at: _row(text, start, at)[1]["step"])
            needed.add(_row(text, start, max(start, beyond - 1))[0])
        for at in sorted(needed):
            yield _row(text, at, at)[1]


def _begins(text: mmap.mmap, end: int) -> Iterator[int]:
    """The offsets of the lines at which a start began."""
    found = text.find(BEGAN, 0, end)
    while found >= 0:
        yield text.rfind(b"\n", 0, found) + 1
        found = text.find(BEGAN, found + 1, end)


def _row(text: mmap.mmap, start: int, at: int) -> tuple[int, Row]:
    """The offset and the row of the line at the byte `at`, or of the line before it where that one is incomplete after a kill.
    `start` is the offset of a complete line before."""
    while True:
        begin = text.rfind(b"\n", start, at) + 1 or start
        with suppress(ValueError):
            return begin, json.loads(text[begin : text.find(b"\n", at)])
        if begin <= start:
            raise ValueError(f"There is no row at {start}.")
        at = begin - 1
