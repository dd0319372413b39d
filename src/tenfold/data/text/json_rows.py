"""Rows of JSON: one value per line, an array, or values one after another, as jq writes them."""

import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from tenfold.data.text.documents import Document, document_of, rows_as_text
from tenfold.data.text.streams import UnreadableFile

MAX_LINE_BYTES = 16 * 2**20
_TOO_LONG = f"longer than {MAX_LINE_BYTES // 2**20} MiB"
_CHUNK = 2**13  # characters read at a time: at most this many before the damage in an archive are lost
# What may stand between values. Not a string, since `"" in string` is true, and would never end at the end of the buffer.
_BETWEEN = (" ", "\t", "\r", "\n", ",")


def is_by_line(head: bytes, named_so: bool) -> bool:
    """Whether a JSON file has one value per line: by its name, or because its first line is an object or is longer than `head`."""
    line, end, _ = head.lstrip().partition(b"\n")
    return not line.startswith(b"[") and (named_so or not end or isinstance(_value(line), dict))


def rows_by_line(name: str, stream: BinaryIO, column: str) -> Iterator[Document]:
    """The rows of JSON lines. An invalid line gives a document with a problem; the other lines are read."""
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
    """The rows of an array, or of values one after another. Everything after invalid JSON is dropped."""
    number = 0
    try:
        for value in _values(rows_as_text(stream)):
            number += 1
            yield from _documents(f"{name}:{number}", value, column)
    except UnreadableFile as problem:
        yield Document(f"{name}:{number + 1}", "", str(problem))


def _documents(name: str, value: Any, column: str) -> Iterator[Document]:
    """The documents of a value: an object with the column, or a whole table in one of the forms that pandas writes."""
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
    """The reason why a line holds no value."""


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError:
        return _Problem("not UTF-8")
    except (ValueError, RecursionError):
        return _Problem("not JSON")


def _values(text: io.TextIOWrapper) -> Iterator[Any]:
    """The top-level values of a stream, or the items of a top-level array; only one of them is in memory at a time."""
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
