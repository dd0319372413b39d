"""Where the time of a run went, over all its starts: the share in steps that counted, and what the rest went to.

`time.jsonl` in the run's directory only ever grows: a line where a process begins or wakes up, and lines with the seconds of each
part so far. Steps that were done but not saved before a failure are in it, though the run's own record forgets them.
"""

import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tenfold.spec.files import append_line, read_lines

PARTS = ("stepping", "saving", "evaluating")


@dataclass(frozen=True)
class Goodput:
    """Seconds by what they went to; they add to `wall_s`. `goodput` is the share of `counted_s`.

    `counted_s`: steps whose result the run kept. `redone_s`: `redone_steps` steps that were lost and done again.
    `starting_s`: from a process's start to its first step. `saving_s`: what the loop waited for saves. `down_s`: from the
    last sign of a process that failed to the start of the next (a hang among it), and while it slept.
    """

    wall_s: float
    goodput: float
    starts: int
    counted_s: float
    redone_s: float
    redone_steps: int
    starting_s: float
    saving_s: float
    evaluating_s: float
    down_s: float
    other_s: float


class GoodputTimer:
    """Times the parts of the loop. `path` None (a process that is not the first) keeps nothing.

    A run that begins again after it has ended begins its file anew.
    """

    def __init__(self, path: Path | None, step: int):
        self._path = path
        if path is not None:
            rows = read_lines(path)
            if step == 0 and rows and rows[-1].get("finished"):
                path.unlink()
        self.begin(step, time.time() - _age_s())

    def begin(self, step: int, began: float) -> None:
        """Count anew from the first step of a process that was started, or woken up, at the time `began`."""
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._line({"began": began, "time": time.time(), "step": step})

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Count what is done within it as `part`, one of `PARTS`."""
        began = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - began

    def write(self, step: int, finished: bool = False) -> None:
        """Put down the seconds so far, with `step` steps done."""
        self._line({"time": time.time(), "step": step, **self._seconds, **({"finished": True} if finished else {})})

    def _line(self, row: dict[str, Any]) -> None:
        if self._path is not None:
            append_line(self._path, row)


def read_goodput(path: Path) -> dict[str, Any]:
    """The `Goodput` of a `time.jsonl` as plain values; empty where there is none."""
    return goodput_of(read_lines(path))


def goodput_of(rows_of_file: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The same of its rows. Of each start the first and the last are needed, and the last that the next start kept."""
    starts: list[list[dict[str, Any]]] = []
    for row in rows_of_file:
        if "began" in row:
            starts.append([{**row, **dict.fromkeys(PARTS, 0.0)}])
        elif starts:
            starts[-1].append(row)
    if not starts:
        return {}
    sums = dict.fromkeys(("counted", "redone", "starting", "saving", "evaluating", "down"), 0.0)
    redone_steps = 0
    for rows, following in zip(starts, [*starts[1:], None], strict=True):
        last = rows[-1]
        kept = last
        if following is not None:
            first = following[0]
            kept = rows[max(1, bisect_right([row["step"] for row in rows], first["step"])) - 1]
            redone_steps += max(0, last["step"] - first["step"])
            sums["down"] += max(0.0, first["began"] - last["time"])
        sums["counted"] += kept["stepping"]
        sums["redone"] += last["stepping"] - kept["stepping"]
        sums["starting"] += rows[0]["time"] - rows[0]["began"]
        sums["saving"] += last["saving"]
        sums["evaluating"] += last["evaluating"]
    wall = starts[-1][-1]["time"] - starts[0][0]["began"]
    return asdict(
        Goodput(
            wall_s=wall,
            goodput=sums["counted"] / wall,
            starts=len(starts),
            redone_steps=redone_steps,
            other_s=wall - sum(sums.values()),
            **{f"{part}_s": seconds for part, seconds in sums.items()},
        )
    )


def _age_s() -> float:
    """How long this process has lived. Linux knows its start since boot; when that was, by the clock on the wall, it knows by a
    second at best, and worse after the clock was set."""
    created = psutil.Process().create_time()
    if psutil.LINUX:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - (created - psutil.boot_time())
    return time.time() - created
