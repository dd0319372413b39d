"""Thins long runs for pictures: at most as many bins as a screen has columns, each with the mean, lowest and highest value."""

from collections.abc import Iterable
from typing import Any

import numpy as np

BINS = 1000
CELLS = 20_000  # at most in a picture of experts' loads,
COLUMNS = 120  # and so many columns
DIGITS = 6  # significant digits of numbers in documents

Column = list[float | None]


def within(steps: np.ndarray, start: float | None, end: float | None) -> slice:
    """The slice of the ascending steps [rows] from `start` to `end`, both included."""
    first = 0 if start is None else int(np.searchsorted(steps, start, "left"))
    last = len(steps) if end is None else int(np.searchsorted(steps, end, "right"))
    return slice(first, max(first, last))


def thinned(rows: np.ndarray, fields: Iterable[str], bins: int = BINS) -> dict[str, Any]:
    """The rows in bins: `x`, the middle step of each bin, and `fields`: name -> `mean`, `low` and `high` [bins].

    Where there are no more rows than bins, each row is a bin and fields have a `mean` only. A field that no row has is left out.
    """
    count = min(len(rows), bins)
    starts = np.arange(count) * len(rows) // max(1, count)
    ends = np.append(starts[1:], len(rows))
    x = rows["step"][(starts + ends) // 2] if count else rows["step"]
    columns = {name: np.ascontiguousarray(rows[name]) for name in fields}
    made = {name: _bins(column, starts, count < len(rows)) for name, column in columns.items() if not np.isnan(column).all()}
    return {"x": x.tolist(), "fields": made}


def _bins(values: np.ndarray, starts: np.ndarray, several: bool) -> dict[str, Column]:
    if not several:
        return {"mean": plain(values)}
    known = ~np.isnan(values)
    counts = np.add.reduceat(known, starts, dtype=np.int64)
    sums = np.add.reduceat(np.where(known, values, 0), starts, dtype=np.float64)
    means = np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)
    lows, highs = (extreme.reduceat(values, starts) for extreme in (np.fmin, np.fmax))
    return {"mean": plain(means), "low": plain(lows), "high": plain(highs)}


def plain(values: np.ndarray) -> Column:
    """Numbers for JSON, with six significant digits; None for values that are not finite."""
    return [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in values.tolist()]


def sample(rows: slice, cells: int) -> list[int]:
    """Indices of evenly spaced rows, for a picture with so many cells in each column."""
    columns = max(8, min(COLUMNS, CELLS // max(1, cells)))
    return sorted({int(i) for i in np.linspace(rows.start, rows.stop - 1, columns)}) if rows.stop > rows.start else []
