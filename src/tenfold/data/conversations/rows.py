"""Read rows of chat data from JSON lines, a JSON list or Parquet, each with its place in the file for error messages."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from tenfold.spec.errors import TenfoldError

Row = dict[str, Any]


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Each row of a file with its place, such as "chats.jsonl, line 3". Raises TenfoldError if the file or a row cannot be read."""
    try:
        yield from _parquet(path) if path.suffix == ".parquet" else _json(path)
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise TenfoldError(f"The chats in {path} cannot be read: {reason.rstrip('.')}.") from None


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    number = 0
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row


def _json(path: Path) -> Iterator[tuple[str, Row]]:
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        listed = _parsed(text, str(path))
        yield from ((f"{path}, row {number}", _row(row, f"{path}, row {number}")) for number, row in enumerate(listed, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _row(_parsed(line, where), where)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise TenfoldError(f'{where}: write {{"messages": [{{"role": "user", "content": "..."}}, ...]}}.') from None


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise TenfoldError(f"{where}: a row must be an object with messages, not {type(value).__name__}.")
    return value
