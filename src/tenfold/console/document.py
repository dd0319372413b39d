"""The console's data model: views build documents from files, and each figure in a document names its file and key."""

import csv
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from msgspec import Struct

from tenfold.spec.errors import TenfoldError

Value = bool | int | float | str | None
Known = TypeVar("Known")


class Figure(Struct, frozen=True, omit_defaults=True):
    """A value that is in `file`, a path relative to the home, under `key`.

    In a JSON file the key is a path of names and indices, separated by dots (`scores.loss.measured`, `rows.0.days`). In JSON lines
    and CSV it is the number of the line from 1, a colon, and the path or column within the line (`12:loss`). In an SQLite database
    it is table, id of the row and column (`leases.3.until`). `low` and `high` are the ends of the value's interval, in the same
    unit.
    """

    value: Value
    file: str
    key: str
    unit: str = ""
    low: float | None = None
    high: float | None = None


class Computed(Struct, frozen=True, omit_defaults=True):
    """A value that is in no file, such as the planner's answer or a sum over a file. `computed` says how it was computed."""

    value: Value
    computed: str
    unit: str = ""
    low: float | None = None
    high: float | None = None


class View(NamedTuple):
    """A tab of the console. Its page is the module `web/NAME.js`, or the file `script` of another package.

    `names(home)` returns the names of its documents, "" for the overview. `document(home, name)` builds one of them, a struct or a
    dict, and raises TenfoldError with one sentence. A `private` view is for operators only, and in no export. `routes` adds further
    endpoints to the application, such as events and changes; it is a FastAPI whose `state.options` are the console's
    `ConsoleOptions`, and whose `state.feeds` its `Feeds`.
    """

    name: str
    title: str
    names: Callable[[Path], Iterable[str]]
    document: Callable[[Path, str], Any]
    private: bool = False
    routes: Callable[[Any], None] | None = None
    script: Path | None = None


def figure(home: Path, file: str, key: str, unit: str = "", interval: tuple[float, float] | list[float] | None = None) -> Figure:
    """The figure under `key` in a file of the home. Raises TenfoldError where the file has no such key."""
    low, high = interval or (None, None)
    return Figure(value_at(home / file, key), file, key, unit, low, high)


def value_at(path: Path, key: str) -> Any:
    """The value under a figure's key. Raises TenfoldError where the file has no such key."""
    line, colon, rest = key.partition(":")
    try:
        if path.suffix == ".json":
            return within(read_json(path), key)
        if path.suffix == ".db":
            return _cell(path, *key.split("."))
        if colon and path.suffix == ".csv":
            return _number(read_rows(path)[int(line) - 2][rest])
        if colon:
            return within(json.loads(_lines(path)[int(line) - 1]), rest)
    except (KeyError, IndexError, TypeError, ValueError):
        pass
    raise TenfoldError(f"There is no {key} in {path}: the file was changed, or is damaged.")


@contextmanager
def undamaged(path: Path, again: str) -> Iterator[None]:
    """Read from a parsed file inside of this block. Raises TenfoldError where the file has not the expected form; `again` says what
    to do about it."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise TenfoldError(f"{path} is damaged ({type(error).__name__}: {error}): {again}.") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, parsed once for each state of it. Raises TenfoldError where it is missing, damaged or no
    object."""
    try:
        found = _cached_json(path, stamp(path))
    except (OSError, ValueError):
        found = None
    return _known(found, dict, path)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, parsed once for each state of it. Raises TenfoldError where the file cannot be read."""
    try:
        found = _cached_rows(path, stamp(path))
    except (OSError, ValueError, csv.Error):
        found = None
    return _known(found, list, path)


def _known(found: Any, kind: type[Known], path: Path) -> Known:
    if not isinstance(found, kind):
        raise TenfoldError(f"{path} cannot be read or is damaged: write it again by the command that made it.")
    return found


def stamp(path: Path) -> tuple[int, int]:
    """A value that changes when the file does: its size and modification time in ns. Raises OSError where there is no file."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@lru_cache(4096)
def _cached_json(path: Path, _: tuple[int, int]) -> Any:
    return json.loads(path.read_text())


@lru_cache(1024)
def _cached_rows(path: Path, _: tuple[int, int]) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def _cell(path: Path, table: str, number: str, column: str) -> Value:
    """The value in a row and column of a database. Raises TypeError or ValueError where there is none."""
    if not (table.isidentifier() and column.isidentifier()):
        raise ValueError(table)
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        try:
            (found,) = database.execute(f"SELECT {column} FROM {table} WHERE id = ?", (int(number),)).fetchone()
        except sqlite3.Error as error:
            raise ValueError(str(error)) from None
    return found


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")


def within(found: Any, key: str) -> Any:
    """The value under a dotted key; names in it may contain dots themselves. Raises KeyError, IndexError or ValueError."""
    if not key:
        return found
    if isinstance(found, list):
        first, _, rest = key.partition(".")
        return within(found[int(first)], rest)
    parts = key.split(".")
    for taken in range(1, len(parts) + 1):
        if isinstance(found, dict) and (name := ".".join(parts[:taken])) in found:
            return within(found[name], ".".join(parts[taken:]))
    raise KeyError(key)


def _number(text: str) -> Value:
    try:
        return float(text)
    except ValueError:
        return text


def figures_in(document: Any) -> Iterable[Figure]:
    """Every figure within a document."""
    if isinstance(document, Figure):
        yield document
    elif isinstance(document, Struct):
        for name in document.__struct_fields__:
            yield from figures_in(getattr(document, name))
    elif isinstance(document, dict):
        for inner in document.values():
            yield from figures_in(inner)
    elif isinstance(document, list | tuple):
        for inner in document:
            yield from figures_in(inner)


def files_of(document: Any) -> set[str]:
    """The files that a document names: those of its figures, and those in its field `files`."""
    listed = document.get("files", ()) if isinstance(document, dict) else getattr(document, "files", ())
    return {one.file for one in figures_in(document)} | set(listed)
