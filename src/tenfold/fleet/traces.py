"""Traces of demand and of jobs, and demand and jobs that are drawn from them for one simulation."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from tenfold.spec.errors import TenfoldError

BIN_S = 600.0
JITTER_S = 3600.0
MOST_RATE, LONGEST_S = 1e12, 3660 * 86_400.0
LATEST_S = 253_402_300_800.0  # seconds since the epoch at the end of the year 9999, the last of ISO 8601


def read_demand(path: Path, scale: float = 1.0, *, growing: bool = False) -> np.ndarray:
    """Requests/s every ten minutes, from a CSV file with a header and with seconds and requests/s in its first two columns.

    The value of a bin is the trace's at the start of the bin, linear between the two nearest rows: rows closer together than ten
    minutes are sampled, not averaged. A last line without a line end is left out of a `growing` file, as it may be half written.
    Raises TenfoldError where the file cannot be read or is no such trace.
    """
    try:
        with path.open(newline="") as file:
            lines = [line for line in file if not growing or line.endswith("\n")]
        rows = [(float(row[0]), float(row[1])) for row in list(csv.reader(lines))[1:] if len(row) > 1 and row[1].strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise TenfoldError(f"{path} is not a trace of demand, with seconds and requests/s in its first columns: {error}.") from None
    if len(rows) < 2 or not all(0 <= rate <= MOST_RATE for _, rate in rows):
        raise TenfoldError(f"{path} needs two rows at least, and rates from 0 to {MOST_RATE:g}: seconds, requests/s.")
    seconds, rates = np.array(sorted(rows)).T
    if not seconds[-1] - seconds[0] <= LONGEST_S:
        raise TenfoldError(f"{path} has times from {seconds[0]:g} to {seconds[-1]:g} s: ten years are the most.")
    bins = np.arange(seconds[0], seconds[-1] + 1, BIN_S)
    return np.interp(bins, seconds, rates) * scale


def drawn_demand(rates: np.ndarray, bins: int, seed: int) -> np.ndarray:
    """The first `bins` of `rates`, or, where there are fewer, a longer demand like them.

    Its days are drawn from the trace's days of the same weekday, and each is multiplied by exp(N(0, 0.03)).
    """
    day = round(86_400 / BIN_S)
    if bins <= len(rates):
        return rates[:bins]
    days = rates[: len(rates) // day * day].reshape(-1, day) if len(rates) >= day else np.resize(rates, (1, day))
    draw, drawn = np.random.default_rng(seed), []
    for number in range(-(-bins // day)):
        same = range(number % 7, len(days), 7) if len(days) >= 7 else range(len(days))
        drawn.append(days[draw.choice(list(same))] * np.exp(draw.normal(0, 0.03)))
    return np.concatenate(drawn)[:bins]


@dataclass(frozen=True)
class JobRows:
    """For each job: the arrival in seconds since the first one, the duration in seconds and the number of GPUs."""

    came: np.ndarray
    seconds: np.ndarray
    gpus: np.ndarray

    def __len__(self) -> int:
        return len(self.came)


def read_jobs(path: Path) -> JobRows:
    """Jobs of a CSV file with the columns timestamp (ISO 8601, or seconds), duration (s) and num_gpus, in the order of their
    arrival.

    Rows without a positive duration or GPU count are skipped. Raises TenfoldError where the file cannot be read or has no job.
    """
    try:
        with path.open(newline="") as file:
            rows = [(_seconds(row["timestamp"]), float(row["duration"]), float(row["num_gpus"])) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError, OverflowError, csv.Error) as error:
        raise TenfoldError(f"{path} is not a trace of jobs, with timestamp, duration and num_gpus: {error}.") from None
    table = np.array(sorted(row for row in rows if 0 < row[1] <= LONGEST_S and 0 < row[2] <= 1e9))
    if not len(table):
        raise TenfoldError(f"{path} has no job that worked.")
    return JobRows(table[:, 0] - table[0, 0], table[:, 1], table[:, 2])


def _seconds(timestamp: str) -> float:
    try:
        seconds = float(timestamp)
    except ValueError:
        return datetime.fromisoformat(timestamp).timestamp()
    if not abs(seconds) <= LATEST_S:
        raise ValueError(f"{timestamp} seconds are no time of a job")
    return seconds


def draw_jobs(rows: JobRows, seconds: float, node_seconds: float, sizes: Sequence[int], seed: int) -> JobRows:
    """The jobs of a period of `seconds` that together have `node_seconds` of work; `sizes` are the nodes of each row.

    Sizes and durations are drawn from all rows. Arrivals are drawn from those in a window of the trace that begins at a random
    place and wraps around at its end, and are shifted at random by up to an hour. In the result `gpus` are nodes.
    """
    draw, work = np.random.default_rng(seed), rows.seconds * np.asarray(sizes)
    index = np.zeros(0, int)
    while not len(index) or work[index].sum() < node_seconds:
        index = np.concatenate([index, draw.integers(0, len(rows), max(100, int(node_seconds / work.mean() / 10)))])
    index = index[: int(np.searchsorted(np.cumsum(work[index]), node_seconds)) + 1]
    span = float(rows.came[-1]) + 1
    first = draw.uniform(0, span)
    came = np.concatenate([rows.came + lap * span - first for lap in range(int((first + seconds) // span) + 1)])
    came = came[(came >= 0) & (came < seconds)]
    times = draw.choice(came if len(came) else draw.uniform(0, seconds, 100), len(index))
    times = np.sort(np.clip(times + draw.uniform(-JITTER_S, JITTER_S, len(index)), 0, seconds))
    return JobRows(times, rows.seconds[index], np.asarray(sizes)[index])
