"""Rows of JSON: a value a line, an array, or values behind one another as jq writes them."""

import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from tenfold.data.text.documents import Document, document_of, rows_as_text
from tenfold.data.text.streams import UnreadableFile

MAX_LINE_BYTES = 16 * 2**20
_TOO_LONG = f"longer than {MAX_LINE_BYTES // 2**20} MiB"
_CHUNK = 2**13  # characters read at a time: at most so many are lost where an archive is damaged
_BETWEEN = (" ", "\t", "\r", "\n", ",")  # characters between values; a tuple, since the empty text at the end is in every text


def is_by_line(head: bytes, named_so: bool) -> bool:
    """Whether a file of JSON has a value a line: by its name, or as its first line is one, or does not end within `head`."""
    line, end, _ = head.lstrip().partition(b"\n")
    return not line.startswith(b"[") and (named_so or not end or isinstance(_value(line), dict))


def rows_by_line(name: str, stream: BinaryIO, column: str) -> Iterator[Document]:
    """The rows of JSON lines; a faulty line becomes a problem and does not affect the others."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES):
        number += 1
        here = f"{name}:{number}"
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE_BYTES)
            yield Document(here, "", f"a line {_TOO_LONG}")
        elif line.strip() and isinstance(value := _value(line), _Problem):
            yield Document(here, "", str(value))
        elif line.strip():
            yield from _documents(here, value, column)


def rows_of_values(name: str, stream: BinaryIO, column: str) -> Iterator[Document]:
    """The rows of an array, or of values one after another; all that comes after damage is lost."""
    number = 0
    try:
        for value in _values(rows_as_text(stream)):
            number += 1
            yield from _documents(f"{name}:{number}", value, column)
    except UnreadableFile as problem:
        yield Document(f"{name}:{number + 1}", "", str(problem))


def _documents(name: str, value: Any, column: str) -> Iterator[Document]:
    """The documents of a value: an object with the column, or a table in an object as pandas writes it."""
    for row in _texts(value, column):
        yield from document_of(name, row, column)


def _texts(value: Any, column: str) -> list[Any]:
    if not isinstance(value, dict):
        return [None]
    found, data, names = value.get(column), value.get("data"), value.get("columns")
    if isinstance(found, dict):  # orient="columns": {column: {row: text}}
        return list(found.values())
    if found is not None or not isinstance(data, list):
        return [found]
    if isinstance(names, list) and column in names:  # orient="split"
        place = names.index(column)
        return [row[place] if isinstance(row, list) and place < len(row) else None for row in data]
    return [row.get(column) if isinstance(row, dict) else None for row in data]  # orient="table"


class _Problem(str):
    """A line that holds no value, and the reason."""


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError:
        return _Problem("not UTF-8")
    except (ValueError, RecursionError):
        return _Problem("not JSON")


def _values(text: io.TextIOWrapper) -> Iterator[Any]:
    """The values at the top of a stream, or the items of the array that it is, each held whole."""
    decode = json.JSONDecoder().raw_decode
    buffer = text.read(_CHUNK).lstrip()
    is_array = buffer.startswith("[")
    place = int(is_array)
    while True:
        while buffer[place : place + 1] in _BETWEEN:
            place += 1
        if is_array and buffer[place : place + 1] == "]":
            break
        try:
            value, place = decode(buffer, place)
        except (ValueError, RecursionError):
            left = buffer[place:]
            more = text.read(max(_CHUNK, len(left)))
            if not more and not left and not is_array:
                return
            if not more or len(left) > MAX_LINE_BYTES:
                raise UnreadableFile(f"a value {_TOO_LONG}" if more else "not JSON") from None
            buffer, place = left + more, 0
        else:
            yield value
    if (buffer[place + 1 :] + text.read(_CHUNK)).strip():
        raise UnreadableFile("not JSON")
