"""Attributes of the items, by which lists are filtered and boosted, and the number of similar items is limited."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tenfold.data.interactions.content import first_rows
from tenfold.data.interactions.read import read_table
from tenfold.spec.errors import TenfoldError, nearest

MASKS = 64  # filters whose masks are cached


@dataclass
class Range:
    """Numbers from `min` to `max`, both included."""

    min: float | None = None
    max: float | None = None


Wanted = str | float | list[str | float] | Range


@dataclass(frozen=True)
class Catalogue:
    """Attributes of `size` tokens: arrays of numbers or text by name; NaN and "" where an item has no value."""

    size: int
    attributes: dict[str, np.ndarray] = field(default_factory=dict)
    _masks: "OrderedDict[str, Tensor]" = field(default_factory=OrderedDict)

    def values(self, attribute: str) -> np.ndarray:
        """The values of an attribute by token. Raises TenfoldError for an unknown attribute."""
        if attribute not in self.attributes:
            known = ", ".join(self.attributes) or "none: give --items"
            raise TenfoldError(f"Items have no attribute {attribute!r}{nearest(attribute, self.attributes)}; they have {known}.")
        return self.attributes[attribute]

    def allowed(self, where: Mapping[str, Wanted]) -> Tensor | None:
        """Which tokens have the wanted attributes, bool [size]; None where `where` is empty."""
        if not where:
            return None
        key = repr(sorted(where.items(), key=lambda item: item[0]))
        if key not in self._masks:
            masks = [_has(self.values(name), wanted, name) for name, wanted in where.items()]
            self._masks[key] = torch.from_numpy(np.logical_and.reduce(masks))
            if len(self._masks) > MASKS:
                self._masks.popitem(last=False)
        return self._masks[key]

    def extended(self, items: pa.Table, names: list[str]) -> "Catalogue":
        """The catalogue with more items; `names` are in the order of their tokens, `items` is the table of their attributes.

        Raises TenfoldError where an attribute that is a number has other values.
        """
        row = first_rows(items)
        rows, known = np.array([row[name] for name in names], int), _columns(items)
        more = {}
        for name, values in self.attributes.items():
            number = values.dtype.kind == "f"
            none = np.full(len(names), np.nan if number else "")
            try:
                more[name] = np.concatenate(
                    (values, _by_token(items[name], rows).astype(float if number else str) if name in known else none)
                )
            except ValueError:
                raise TenfoldError(f"The attribute {name!r} is a number, and the new items have other values of it.") from None
        return Catalogue(self.size + len(names), more)


def _has(values: np.ndarray, wanted: Wanted, name: str) -> np.ndarray:
    numbers = values.dtype.kind == "f"
    if isinstance(wanted, Range):
        if not numbers:
            raise TenfoldError(f"The attribute {name!r} is text, which has no range: give the wanted values instead.")
        low, high = (-np.inf if wanted.min is None else wanted.min), (np.inf if wanted.max is None else wanted.max)
        return (low <= values) & (values <= high)
    given = wanted if isinstance(wanted, list) else [wanted]
    if numbers and any(isinstance(one, str) for one in given):
        raise TenfoldError(f"The attribute {name!r} is a number, and {given} has texts: give numbers or a range.")
    return np.isin(values, np.asarray(given, float) if numbers else np.asarray([str(one) for one in given]))


def read_catalogue(file: Path | None, names: list[str]) -> Catalogue:
    """The attributes in a Parquet, CSV or JSON-lines table with a column `item`; items that are not in it have none.

    Raises TenfoldError for a table that cannot be read, has no such column, or knows none of the items.
    """
    if file is None:
        return Catalogue(len(names))
    table = read_items(file)
    row = first_rows(table)
    rows = np.array([row.get(name, -1) for name in names])
    if not (rows >= 0).any():
        raise TenfoldError(f"{file} has none of the model's items: its column 'item' must have their names.")
    return Catalogue(len(names), {name: _by_token(table[name], rows) for name in _columns(table)})


def read_items(file: Path) -> pa.Table:
    """A table of items, with their names as text. Raises TenfoldError for a file that is no table, or has no column `item`."""
    table = read_table(file)
    if "item" not in table.column_names:
        raise TenfoldError(f"{file} has no column 'item': it has {', '.join(table.column_names)}.")
    return table.set_column(table.schema.get_field_index("item"), "item", table["item"].cast(pa.string()))


def _columns(table: pa.Table) -> list[str]:
    """The columns with one value for each item; lists of words or numbers are content for the model and no attributes."""
    return [name for name in table.column_names if name != "item" and not pa.types.is_nested(table[name].type)]


def _by_token(column: pa.ChunkedArray, rows: np.ndarray) -> np.ndarray:
    numbers = pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)
    values: Any = column.cast(pa.float64()).to_numpy() if numbers else column.cast(pa.string()).fill_null("").to_numpy().astype(str)
    return np.where(rows >= 0, values[rows], np.nan if numbers else "")
