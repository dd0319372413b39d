"""The demand of a fleet's services with its forecast, and busy nodes with those that power allows, as columns for charts."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.fleet.seen import Seen, SeenService, read_seen

DAY_S = 86_400.0
READ, PLACES = 4 << 20, 600  # bytes of the record that are read at most, and points of a picture

Column = list[float | None]


def pools(folder: Path) -> list[dict[str, Any]]:
    """What the controller saw of each pool in the last day of its record."""
    rows = read_seen(folder, READ)
    last_day = [row for row in rows if row.at >= rows[-1].at - DAY_S]
    return [_pool(name, [row for row in last_day if row.pool == name]) for name in sorted({row.pool for row in last_day})]


def _pool(name: str, rows: list[Seen]) -> dict[str, Any]:
    rows = rows[:: -math.ceil(len(rows) / PLACES)][::-1]  # evenly spaced, the last one included
    at = np.array([row.at for row in rows])
    services = sorted({service for row in rows for service in row.services})
    return {
        "name": name,
        "at": at.tolist(),
        "busy": [row.busy for row in rows],
        "allowed": [row.allowed for row in rows],
        "services": {service: _demand(at, [row.services.get(service) for row in rows]) for service in services},
    }


def _demand(at: np.ndarray, said: list[SeenService | None]) -> dict[str, Column]:
    """The columns of a service. A forecast is placed at the time that it is for, the start of a bin, as it was first made."""
    known = [(now + one.in_s, one.middle, one.high) for now, one in zip(at, said, strict=True) if one and one.in_s is not None]
    when, middle, high = np.array(known, float).reshape(-1, 3).T
    when, first = np.unique(when.round(3), return_index=True)
    return {
        "rate": [one.rate if one else None for one in said],
        "answers": [one.answers if one else None for one in said],
        "middle": _between(at, when, middle[first]),
        "high": _between(at, when, high[first]),
    }


def _between(at: np.ndarray, when: np.ndarray, values: np.ndarray) -> Column:
    """The values, interpolated linearly at other times; None outside their range."""
    if not len(when):
        return [None] * len(at)
    return [None if math.isnan(value) else value for value in np.interp(at, when, values, math.nan, math.nan).tolist()]
