"""Reading of tables of measurements: files, and cells, which are read strictly or refused."""

import csv
import io
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import readable

DATA = resources.files("tenfold.plan").joinpath("data/published")
ASSUMED_STACK = "megatron-lm-2024"  # software of a row that names none
LARGEST, MOST = 1e30, 1e9  # limits of numbers and of whole numbers
NOTHING = ("", "n/a", "-")  # empty cells
# A plain number, which may be followed by that of a second quantisation or layout in brackets.
NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)(?: \(.*\))?", re.IGNORECASE)


@dataclass(frozen=True)
class Unread:
    """A row that could not be read: its line in the file, the column, the cell's text, and what is wrong with it."""

    line: int
    column: str
    value: str
    why: str

    def words(self) -> str:
        return (
            f"row {self.line}, column {self.column}: {self.value!r} {self.why}" if self.column else f"row {self.line}: {self.why}"
        )


class Refused(Exception):
    """A cell cannot be read."""

    def __init__(self, column: str, value: str, why: str) -> None:
        super().__init__(column, value, why)
        self.column, self.value, self.why = column, value, why


def read_table(name: str, path: Path | None = None) -> list[dict[str, str]]:
    """The rows of `path`, or of the package's own table `name`. Cells are separated by commas or semicolons.

    Raises TenfoldError for a missing file, missing columns (those of the package's table), and a table without rows.
    """
    own = csv.DictReader(DATA.joinpath(name).read_text().splitlines())
    if path is None:
        return list(own)
    if not path.is_file():
        raise TenfoldError(f"There is no file {path}.")
    with readable(path):
        text = path.read_bytes().decode("utf-8-sig")
        head = text.partition("\n")[0]
        delimiter = ";" if head.count(";") > head.count(",") else ","
        given = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [{key: (value or "").strip() for key, value in row.items() if isinstance(key, str)} for row in given]
    missing = [c for c in own.fieldnames or () if c not in (given.fieldnames or ()) and c != "stack"]
    if missing:
        raise TenfoldError(f"{path} has no column {', '.join(missing)}: give all columns of the package's {name}.")
    if not rows:
        raise TenfoldError(f"{path} has the columns of {name}, but no row: give a row for each measurement.")
    return rows


def number(row: dict[str, str], column: str) -> float | None:
    """The number of a cell, above zero; None where it is empty. Raises Refused for anything else."""
    text = row[column].strip()
    if text.lower() in NOTHING:
        return None
    match = NUMBER.fullmatch(text)
    if not match:
        raise Refused(column, text, "is no number above zero: write it in digits, without separators or units")
    value = float(match[1])
    if not 0 < value < LARGEST:
        raise Refused(column, text, "must be above zero" if value <= 0 else "is larger than anything that is measured")
    return value


def whole(row: dict[str, str], column: str, default: int = 1) -> int:
    """The whole number of a cell; `default` where it is empty. Raises Refused for anything else."""
    value = number(row, column)
    if value is not None and value % 1:
        raise Refused(column, row[column], "must be a whole number")
    if value is not None and value > MOST:
        raise Refused(column, row[column], f"is more than {MOST:,.0f}")
    return default if value is None else int(value)


def word(row: dict[str, str], column: str, known: dict[str, Any]) -> Any:
    """The value of `known` for a cell's word, in any case. Raises Refused, with the known words, for another."""
    text = row[column].strip().lower()
    if text not in known:
        raise Refused(column, row[column], f"is none of {', '.join(k for k in known if k)}")
    return known[text]
