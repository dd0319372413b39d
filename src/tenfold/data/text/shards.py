"""Tokens on disk: one stream per split, divided into files (shards) of equal length, and the positions of the documents.

train-00000.bin  train-00001.bin  ...  train-documents.bin  (and the same for validation)
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

SHARD_TOKENS = 2**26  # tokens in a file


@dataclass(frozen=True)
class Shards:
    """A stream of tokens in memory-mapped files of `size` tokens each; the last one may be shorter.

    `documents` is int64 [documents + 1]: the position at which each begins, then the length of the stream.
    """

    parts: tuple[np.ndarray, ...]
    size: int
    documents: np.ndarray

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, positions: slice | np.ndarray) -> np.ndarray:
        """The tokens at `positions`, in the shape of `positions`."""
        if isinstance(positions, slice):
            positions = np.arange(*positions.indices(len(self)))
        shard, place = np.divmod(positions, self.size)
        out = np.empty(positions.shape, dtype=self.parts[0].dtype)
        for number in np.unique(shard):
            inside = shard == number
            out[inside] = self.parts[number][place[inside]]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate(self.parts).astype(dtype or self.parts[0].dtype)

    def document(self, number: int) -> np.ndarray:
        """The tokens of a document, including the special ones at its begin (if there is one) and end."""
        return self[int(self.documents[number]) : int(self.documents[number + 1])]


def open_shards(directory: Path, split: str, dtype: str, size: int) -> Shards:
    """The shards of a split, memory-mapped."""
    parts = tuple(np.memmap(path, np.dtype(dtype), "r") for path in sorted(directory.glob(f"{split}-[0-9]*.bin")))
    return Shards(parts, size, np.memmap(directory / f"{split}-documents.bin", np.int64, "r"))


class ShardWriter:
    """Writes one split, document by document. After the `with` block, `files` maps each file to its length and checksum."""

    def __init__(self, directory: Path, split: str, dtype: str, size: int) -> None:
        self.files: dict[str, dict[str, Any]] = {}
        self.tokens = self.documents = 0
        self._directory, self._split, self._dtype, self._size = directory, split, dtype, size
        self._index = _Checked(directory / f"{split}-documents.bin")
        self._index.write(np.zeros(1, np.int64))
        self._shard: _Checked | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._index, self._shard):
            if file:
                self.files[file.path.name] = file.close()

    def write(self, tokens: np.ndarray) -> None:
        self.documents += 1
        while len(tokens):
            number, used = divmod(self.tokens, self._size)
            if not used:
                self._next(number)
            assert self._shard
            now, tokens = tokens[: self._size - used], tokens[self._size - used :]
            self._shard.write(now.astype(self._dtype))
            self.tokens += len(now)
        self._index.write(np.array([self.tokens], np.int64))

    def _next(self, number: int) -> None:
        if self._shard:
            self.files[self._shard.path.name] = self._shard.close()
        self._shard = _Checked(self._directory / f"{self._split}-{number:05}.bin")


class _Checked:
    """A file that is being written, with a running SHA-256 of its content."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")
        self._digest = hashlib.sha256()

    def write(self, values: np.ndarray) -> None:
        data = values.tobytes()
        self._digest.update(data)
        self._file.write(data)

    def close(self) -> dict[str, Any]:
        self._file.close()
        return {"bytes": self.path.stat().st_size, "sha256": self._digest.hexdigest()}
