"""Content features of items, from which a content tower computes the embeddings of new items.

Texts, attributes and lists of them are split into words, which are hashed to `HASHED` features. A column `item_vector` of lists of
numbers, for example from an embedding model, is used as it is, normalised.
"""

import hashlib
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from tenfold.data.interactions.events import ITEMS
from tenfold.spec.errors import TenfoldError

HASHED = 512  # features for hashed words
VECTOR = "item_vector"


def read_features(directory: Path, vocab_size: int) -> np.ndarray:
    """The features of the items of `directory`, float32 [vocab_size, features]; those of token 0 are 0.

    Raises TenfoldError if nothing is known of the items.
    """
    return features(pa.parquet.read_table(directory / ITEMS).slice(0, vocab_size - 1), first=1)


def first_rows(items: pa.Table) -> dict[str, int]:
    """The row of each item in a table, by name, in the order of the table. If an item has several rows, the first one counts."""
    found: dict[str, int] = {}
    for row, name in enumerate(items["item"].to_pylist()):
        found.setdefault(name, row)
    return found


def features(items: pa.Table, first: int = 0) -> np.ndarray:
    """The features of a table of items, float32 [first + items, features], after `first` rows of zeros."""
    names = [name for name in items.column_names if name != "item"]
    if not names:
        raise TenfoldError("Nothing is known of the items: give columns named item_..., or turn content features off.")
    words = [name for name in names if name != VECTOR]
    parts = [_hashed(items.select(words))] if words else []
    parts += [_vectors(items[VECTOR])] if VECTOR in names else []
    return np.concatenate((np.zeros((first, sum(p.shape[1] for p in parts)), np.float32), np.concatenate(parts, 1)))


def _hashed(items: pa.Table) -> np.ndarray:
    found = np.zeros((len(items), HASHED), np.float32)
    for row, values in enumerate(items.to_pylist()):
        for name, value in values.items():
            for word in _words(value):
                mark = int.from_bytes(hashlib.blake2b(f"{name} {word}".encode(), digest_size=8).digest(), "little")
                found[row, mark % HASHED] += 1.0 if mark >> 63 else -1.0
    return found / np.maximum(1e-6, np.linalg.norm(found, axis=1, keepdims=True)) * HASHED**0.5


def _words(value: object) -> list[str]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [word for one in values for word in re.findall(r"\w+", str(one).lower())]


def _vectors(column: pa.ChunkedArray) -> np.ndarray:
    kind, rows = column.type, column.to_pylist()
    value = getattr(kind, "value_type", None)  # a struct has none
    numbers = pa.types.is_nested(kind) and value is not None and (pa.types.is_floating(value) or pa.types.is_integer(value))
    if not numbers and not pa.types.is_null(kind):
        raise TenfoldError(f"The column {VECTOR} has values of the type {kind}: give lists of numbers.")
    size = max((len(row) for row in rows if row), default=0)
    if any(row is not None and len(row) != size for row in rows):
        raise TenfoldError(f"The column {VECTOR} has lists of different lengths: give lists of one length.")
    found = np.array([row or [0.0] * size for row in rows], np.float32)
    return found / np.maximum(1e-6, np.linalg.norm(found, axis=1, keepdims=True)) * max(1, size) ** 0.5
