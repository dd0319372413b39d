"""Measured (parameters, tokens, loss) points, and CSV files of them."""

import csv
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.files import readable


@dataclass(frozen=True)
class Point:
    """One finished run. `params` that a token multiplies with, `loss` in any unit that is kept."""

    params: float
    tokens: float
    flops: float
    loss: float


def arrays(points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """params, tokens, flops, loss as float arrays [points]."""
    return tuple(np.array([getattr(p, f.name) for p in points], dtype=float) for f in fields(Point))  # type: ignore


def fingerprint(points: Sequence[Point]) -> str:
    """SHA-256 of the points, in order, so that a forecast can say what it was fitted on."""
    text = "\n".join(f"{p.params:.9g},{p.tokens:.9g},{p.flops:.9g},{p.loss:.9g}" for p in points)
    return hashlib.sha256(text.encode()).hexdigest()


def parse_columns(text: str) -> dict[str, str]:
    """`"params=n,tokens=d"` as {"params": "n", "tokens": "d"}."""
    known = [f.name for f in fields(Point)]
    columns = {}
    for part in filter(None, text.split(",")):
        name, _, column = part.partition("=")
        if name not in known or not column:
            raise TenfoldError(f"--columns has {part!r}{nearest(name, known)}: write for example params=n,tokens=d,flops=c,loss=l.")
        columns[name] = column
    return columns


def read_points(path: Path, columns: dict[str, str] | None = None) -> tuple[list[Point], int]:
    """Points of a CSV file, and how many rows could not be used (no number where one is needed).

    One of params, tokens and flops may be missing: it then follows from flops = 6 params tokens.
    """
    names = {f.name: f.name for f in fields(Point)} | (columns or {})
    if not path.exists():
        raise TenfoldError(f"There is no file {path}.")
    with readable(path), path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        header = reader.fieldnames or []
        for name, column in names.items():
            if column not in header and (name == "loss" or name in (columns or {})):
                raise TenfoldError(
                    f"{path} has no column {column!r} for {name}{nearest(column, header)}: name it with --columns {name}=..."
                )
        present = [name for name in ("params", "tokens", "flops") if names[name] in header]
        if len(present) < 2:
            raise TenfoldError(
                f"{path} must have two of params, tokens and flops (found {', '.join(present) or 'none'}): name them with "
                "--columns."
            )
        points, unusable = [], 0
        for row in reader:
            values = {name: _number(row.get(names[name])) for name in names}
            n, d, c = values["params"], values["tokens"], values["flops"]
            if math.isnan(c):
                c = 6 * n * d
            elif math.isnan(d):
                d = c / (6 * n)
            elif math.isnan(n):
                n = c / (6 * d)
            if all(math.isfinite(v) and v > 0 for v in (n, d, c, values["loss"])):
                points.append(Point(n, d, c, values["loss"]))
            else:
                unusable += 1
    return points, unusable


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
