"""Traces of demand and of jobs, and what is drawn from them for one simulated time."""

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


def read_demand(path: Path, scale: float = 1.0) -> np.ndarray:
    """Requests/s in bins of ten minutes, from a CSV file with seconds and requests/s in its first two columns.

    A bin without a row takes what the line between its neighbours says. Raises TenfoldError where there is no such file.
    """
    try:
        with path.open(newline="") as file:
            rows = [(float(row[0]), float(row[1])) for row in list(csv.reader(file))[1:] if len(row) > 1 and row[1].strip()]
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
    """A longer demand like `rates`: its days one after another, those of the same weekday in random order, each day's height
    moved by the ratio of two days of the trace."""
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
    """When jobs came, in seconds from the first, how long they worked and on how many GPUs."""

    came: np.ndarray
    seconds: np.ndarray
    gpus: np.ndarray

    def __len__(self) -> int:
        return len(self.came)


def read_jobs(path: Path) -> JobRows:
    """Jobs with the columns timestamp (of ISO 8601, or seconds), duration (s) and num_gpus, in the order in which they came."""
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
    """The jobs of a time of `seconds`, as many as make `node_seconds` of work, `sizes` being the nodes of each row.

    What they are is drawn from all rows; when they come, from the arrivals of a window of the trace that begins where the seed says
    and goes on at the trace's beginning, within an hour. `gpus` of the result are nodes.
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
