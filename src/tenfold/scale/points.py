"""Measured (parameters, tokens, loss) points, and CSV files of them."""

import csv
import hashlib
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.files import readable
from tenfold.spec.units import parse_quantity


@dataclass(frozen=True)
class Point:
    """One finished run. `params` are those that each token is multiplied with (`matrix_active` in `spec.model`), `loss` is in any
    unit, the same for all points."""

    params: float
    tokens: float
    flops: float
    loss: float
    row: int = field(default=0, compare=False)  # line of the file that it was read from; the header is row 1


NAMES = ("params", "tokens", "flops", "loss")


def arrays(points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """params, tokens, flops and loss as float arrays [points]."""
    return tuple(np.array([getattr(p, name) for p in points], dtype=float) for name in NAMES)  # type: ignore


def once(points: Sequence[Point]) -> list[Point]:
    """The points without duplicates, in an order that does not depend on the file's."""
    return sorted(set(points), key=lambda p: (p.flops, p.params, p.tokens, p.loss))


def fingerprint(points: Sequence[Point]) -> str:
    """SHA-256 of the points in any order, kept in a forecast to show what it was fitted to."""
    text = "\n".join(sorted(f"{p.params:.9g},{p.tokens:.9g},{p.flops:.9g},{p.loss:.9g}" for p in points))
    return hashlib.sha256(text.encode()).hexdigest()


def parse_columns(text: str) -> dict[str, str]:
    """`"params=n,tokens=d"` as {"params": "n", "tokens": "d"}. Raises TenfoldError for an unknown name or an empty column."""
    columns = {}
    for part in filter(None, text.split(",")):
        name, _, column = part.partition("=")
        if name not in NAMES or not column:
            raise TenfoldError(
                f"--columns has {part!r}{nearest(name, NAMES)}: write NAME=COLUMN, for example params=n,tokens=d,flops=c,loss=l."
            )
        columns[name] = column
    return columns


def read_points(path: Path, columns: dict[str, str] | None = None) -> tuple[list[Point], list[int]]:
    """The points of a CSV file, and the row numbers that could not be used because a cell has no positive number.

    Cells are separated by commas, semicolons or tabs; numbers may be written as 10,569,312 or 11M. One of params, tokens and flops
    may be missing: it then follows from flops = 6 params tokens. Raises TenfoldError for missing columns and a file without rows.
    """
    names = {name: name for name in NAMES} | (columns or {})
    header, rows = read_rows(path)
    _check_header(path, header, names, list(columns or {}))
    points, unusable = [], []
    for number, row in enumerate(rows, start=2):
        if (point := _point({name: number_of(row.get(names[name])) for name in names}, number)) is None:
            unusable.append(number)
        else:
            points.append(point)
    if not points and not unusable:
        raise TenfoldError(f"{path} has no rows below its header: give a row for each finished run.")
    return points, unusable


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The header of a CSV file and its rows; cells are separated by commas, semicolons or tabs."""
    if not path.exists():
        raise TenfoldError(f"There is no file {path}.")
    with readable(path), path.open(newline="", encoding="utf-8-sig") as stream:
        first = stream.readline()
        stream.seek(0)
        reader = csv.DictReader(stream, delimiter=max(",;\t", key=first.count))
        return list(reader.fieldnames or []), list(reader)


def require_columns(path: Path, header: Sequence[str], names: Sequence[str]) -> None:
    """Raises TenfoldError where a column is missing."""
    for name in names:
        if name not in header:
            has = f"it has {', '.join(header)}" if any(header) else "it is empty"
            raise TenfoldError(
                f"{path} has no column {name!r}{nearest(name, header)} ({has}): give a file with the columns {', '.join(names)}."
            )


def _check_header(path: Path, header: list[str], names: dict[str, str], asked: list[str]) -> None:
    """Raises TenfoldError where a column is missing."""
    if not any(header):
        raise TenfoldError(f"{path} is empty: give a CSV file with a header and a row for each finished run.")
    columns = f" (it has {', '.join(header)})"
    for name, column in names.items():
        if column not in header and (name == "loss" or name in asked):
            raise TenfoldError(
                f"{path} has no column {column!r} for {name}{nearest(column, header)}{columns}: name it with --columns {name}=..."
            )
    present = [name for name in ("params", "tokens", "flops") if names[name] in header]
    if len(present) < 2:
        raise TenfoldError(
            f"{path} must have two of params, tokens and flops (found {', '.join(present) or 'none'}){columns}: name them with "
            "--columns, for example --columns params=n,tokens=d."
        )


def _point(values: dict[str, float], row: int) -> Point | None:
    n, d, c, loss = (values[name] for name in NAMES)
    if math.isnan(c):
        c = 6 * n * d
    elif math.isnan(d):
        d = c / (6 * n) if n else math.nan
    elif math.isnan(n):
        n = c / (6 * d) if d else math.nan
    return Point(n, d, c, loss, row) if all(math.isfinite(v) and v > 0 for v in (n, d, c, loss)) else None


def number_of(text: str | None) -> float:
    """A cell as a number (3e9, 3B, 10,569,312); NaN where the text is no number."""
    text = (text or "").strip()
    if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d*)?", text):
        text = text.replace(",", "")
    with suppress(ValueError):
        return float(text)
    with suppress(TenfoldError):
        return parse_quantity(text)
    return math.nan
