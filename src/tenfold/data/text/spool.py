"""Documents on disk between cleaning and tokenizing: memory holds only a 22-byte record of each."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from tenfold.data.text.dedup import signature

# Position and length in bytes of the name and, after it, the text.
RECORD = np.dtype([("offset", "<u8"), ("key", "<u8"), ("bytes", "<u4"), ("name", "<u2")])


class Spool:
    """Three files: all names and texts one after another, their records, and their MinHash signatures.

    A record's `key` is the first 8 bytes of the text's SHA-256: the same for copies, otherwise as good as random.
    """

    def __init__(self, folder: Path) -> None:
        self.signatures = folder / "signatures"
        self._records = folder / "records"
        self._open = ExitStack()
        paths = (folder / "texts", self._records, self.signatures)
        self._files = [self._open.enter_context(path.open("w+b")) for path in paths]
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, name: str, text: bytes) -> None:
        texts, records, signatures = self._files
        key = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
        # Of a long name the end is kept, which says more than the beginning of a path.
        called = name.encode("utf-8", "replace")[-2000:]
        records.write(np.array((self._end, key, len(text), len(called)), dtype=RECORD).tobytes())
        signatures.write(signature(text).tobytes())
        texts.write(called + text)
        self._end += len(called) + len(text)

    def records(self) -> np.ndarray:
        """All records, RECORD [documents], in the order of `add`."""
        for file in self._files:
            file.flush()
        return np.fromfile(self._records, RECORD)

    def name(self, record: np.void) -> str:
        return os.pread(self._files[0].fileno(), int(record["name"]), int(record["offset"])).decode("utf-8", "replace")

    def texts(self, records: Iterable[np.void]) -> Iterator[bytes]:
        for record in records:
            yield os.pread(self._files[0].fileno(), int(record["bytes"]), int(record["offset"]) + int(record["name"]))
