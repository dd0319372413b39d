"""Goodput: the share of a run's wall-clock time, over all its starts, that went into steps whose result was kept.

Times are appended to `time.jsonl` in the run's directory: one line when a process starts or wakes up, and lines with the seconds
spent in each part so far. Unlike `run.jsonl`, it keeps the steps that were lost in a failure because they had not been saved.
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
    """Seconds by what they were spent on; all but `wall_s` itself add up to `wall_s`. `goodput` is counted_s / wall_s.

    `counted_s`: steps whose result the run kept. `redone_s`: `redone_steps` steps that were lost and repeated. `starting_s`: from
    the start of a process to its first step. `saving_s`: the training loop waiting for saves. `down_s`: from the last line of a
    process that failed (including a hang) to the start of the next one, and while the run slept. `starts`: number of starts.
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
    """Measures the time spent in the parts of the training loop and appends it to `path`.

    With `path` None, as on every process but the first, nothing is written. If the run in the file had finished and starts again
    from step 0, the file is deleted first.
    """

    def __init__(self, path: Path | None, step: int):
        self._path = path
        if path is not None:
            rows = read_lines(path)
            if step == 0 and rows and rows[-1].get("finished"):
                path.unlink()
        self.begin(step, time.time() - _age_s())

    def begin(self, step: int, began: float) -> None:
        """Start counting from zero, for a process that was started or woken up at `began` (Unix seconds)."""
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._line({"began": began, "time": time.time(), "step": step})

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Count the time of the block as `part`, one of `PARTS`."""
        began = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - began

    def write(self, step: int, finished: bool = False) -> None:
        """Append the seconds so far, after `step` steps."""
        self._line({"time": time.time(), "step": step, **self._seconds, **({"finished": True} if finished else {})})

    def _line(self, row: dict[str, Any]) -> None:
        if self._path is not None:
            append_line(self._path, row)


def read_goodput(path: Path) -> dict[str, Any]:
    """The fields of `Goodput` from a `time.jsonl`; an empty dict if there is no file."""
    return goodput_of(read_lines(path))


def goodput_of(rows_of_file: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """As `read_goodput`, from the rows of the file.

    Of each start, only three rows matter: the first, the last, and the last one whose step the next start did not repeat.
    """
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
    """The age of this process in seconds.

    On Linux it is computed from times since boot, because the wall-clock time of the boot is only known to a second, and is wrong
    after the clock was set.
    """
    created = psutil.Process().create_time()
    if psutil.LINUX:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - (created - psutil.boot_time())
    return time.time() - created
