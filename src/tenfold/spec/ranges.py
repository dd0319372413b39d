"""The ranges of settings. A field's range is declared in its annotation by `msgspec.Meta`; checks and messages are made from it."""

import dataclasses
import math
import re
from collections.abc import Iterable
from datetime import date
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from tenfold.spec.errors import TenfoldError, nearest

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1)]
Seed = Annotated[int, Meta(ge=0, le=2**53)]
CountOrNone = Annotated[int, Meta(ge=0)]
Nodes = Annotated[int, Meta(ge=1, le=2**20)]
Flops = Annotated[float, Meta(gt=0, le=1e40)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
SeqLen = Annotated[int, Meta(ge=1, le=2**32)]
VocabSize = Annotated[int, Meta(ge=1, le=2**24)]
LearningRate = Annotated[float, Meta(gt=0, le=100)]
Temperature = Annotated[float, Meta(ge=0, le=100)]
TopP = Annotated[float, Meta(gt=0, le=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Text = Annotated[str, Meta(min_length=1)]

T = TypeVar("T")
LARGEST = 2**63 - 1  # the largest signed 64-bit integer
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path", list: "a list"}
NAMES |= {tuple: "a list", dict: "a table", date: "a date such as 2027-03-31"}


def require(value: Any, kind: Any, name: str) -> None:
    """Raises TenfoldError, in which the value is called `name`, if it does not fit the type and range `kind`."""
    try:
        msgspec.convert(value, kind)
        fits = unusable(value) is None
    except msgspec.ValidationError:
        fits = False
    if not fits:
        raise TenfoldError(f"{name} must be {words(kind)}, not {shown(value)}{nearest(str(value), choices(kind))}.")


def require_fields(table: Any, where: str) -> None:
    """`require` for every field of a dataclass, except nested ones, which check their own. `where` begins the message."""
    made_of: Any = type(table)
    for name, kind in hints_of(made_of).items():
        value = getattr(table, name)
        if not (dataclasses.is_dataclass(value) and type(value) in alternatives(kind)):
            require(value, kind, f"{where}: {name}")


def require_keys(fields: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises TenfoldError for the first unknown key, with the nearest known one. `where` begins the message."""
    known = list(known)
    for key in fields:
        if key not in known:
            raise TenfoldError(f"{where} has no setting {key!r}{nearest(key, known)}.")


def convert(fields: Any, table: type[T], where: str) -> T:
    """Convert `fields` to a `table`. Raises TenfoldError with `where`, the key, its range and the wrong value."""
    try:
        made = msgspec.convert(fields, table)
    except msgspec.ValidationError as error:
        at = re.search(r"`\$\.([\w.\[\]]+)`$", str(error))
        sentence = _must_be(fields, table, at[1]) if at and "missing" not in str(error) and "unknown" not in str(error) else ""
        raise TenfoldError(f"{where}: {sentence or str(error).replace('`$.', '`')}.") from None
    if (path := unusable(fields)) is not None:
        raise TenfoldError(f"{where}: {_must_be(fields, table, path) or f'{path} has a value that cannot be used'}.")
    return made


def _must_be(fields: Any, table: Any, path: str) -> str:
    """What is wrong with the value at `path`: `warmup in the table [optimizer] must be a number >= 0 and <= 1, not 2.0`."""
    value, kind = fields, table
    for key, index in re.findall(r"(\w+)|\[(\d+)\]", path):
        owners = [one for one in alternatives(kind) if (is_table(one) if key else get_origin(one) in (list, tuple))]
        if not owners:
            return ""
        parts = get_args(owners[0])
        value = value[key or int(index)]
        fixed = get_origin(owners[0]) is tuple and Ellipsis not in parts
        kind = hints_of(owners[0])[key] if key else parts[int(index) if fixed else 0]
    return f"{as_key(path)} must be {words(kind)}, not {shown(value)}{nearest(str(value), choices(kind))}"


def unusable(value: Any, path: str = "") -> str | None:
    """The path of the first infinity, NaN, integer beyond 64 bits, or text with a zero byte in `value`; None if there is none."""
    if isinstance(value, dict):
        return _first(unusable(part, f"{path}.{key}".lstrip(".")) for key, part in value.items())
    if isinstance(value, list | tuple):
        return _first(unusable(part, f"{path}[{i}]") for i, part in enumerate(value))
    infinite = isinstance(value, float) and not math.isfinite(value)
    huge = isinstance(value, int) and abs(value) > LARGEST
    return path if infinite or huge or (isinstance(value, str | Path) and "\0" in str(value)) else None


def _first(found: Iterable[str | None]) -> str | None:
    return next((one for one in found if one is not None), None)


def as_key(dotted: str) -> str:
    """A dotted key in words: `optimizer.warmup` becomes `warmup in the table [optimizer]`."""
    table, _, key = dotted.rpartition(".")
    return f"{key} in the table [{table}]" if table else key


def words(kind: Any) -> str:
    """The values of a type in words: `a number > 0 and <= 1`, `muon or adamw`."""
    if get_origin(kind) is Annotated:
        base, bounds = words(get_args(kind)[0]), _bounds(kind.__metadata__)
        base = next((m.extra["words"] for m in kind.__metadata__ if m.extra and "words" in m.extra), base)
        return f"{base} {' and '.join(bounds)}" if bounds else base
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(dict.fromkeys(words(one) for one in get_args(kind) if one is not type(None)))
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    return NAMES.get(get_origin(kind) or kind, "a table")


def _bounds(metadata: tuple[Any, ...]) -> list[str]:
    found = [m for m in metadata if isinstance(m, Meta)]
    bounds = [f"{sign} {_number(value)}" for m in found for name, sign in BOUNDS.items() if (value := getattr(m, name)) is not None]
    return ["that is not empty"] * any(m.min_length == 1 for m in found) + bounds


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def choices(kind: Any) -> list[str]:
    """The values of the `Literal`s in a type, as text."""
    return [str(choice) for one in alternatives(kind) if get_origin(one) is Literal for choice in get_args(one)]


def alternatives(kind: Any) -> list[Any]:
    """The member types of a union, without None; for any other type a list of this type alone."""
    if get_origin(kind) is Annotated:
        return alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [one for part in get_args(kind) if part is not type(None) for one in alternatives(part)]
    return [kind]


def is_table(kind: Any) -> bool:
    """Whether a type is a msgspec struct or a dataclass."""
    return isinstance(kind, type) and (issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind))


def shown(value: Any) -> str:
    """A value as shown in a message, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


@cache
def hints_of(table: type) -> dict[str, Any]:
    """The annotations of a class by field, with their metadata."""
    return get_type_hints(table, include_extras=True)
