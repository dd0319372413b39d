"""Documents, and the division of long texts into several."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

MAX_DOCUMENT_BYTES = 2**20  # more tokens than in the longest context that is trained
_BYTE_ORDER_MARK = "\ufeff"
_NO_UTF8 = re.compile("[\udc80-\udcff]")  # `rows_as_text` decodes invalid bytes to these


def rows_as_text(stream: BinaryIO, newline: str | None = None) -> io.TextIOWrapper:
    """A UTF-8 stream as text. Invalid bytes become surrogates, so that only the rows that contain them are dropped."""
    return io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline=newline)


@dataclass(frozen=True)
class Document:
    """A text and its origin (`name`). If it could not be read, `problem` says why, and the text is empty."""

    name: str
    text: str
    problem: str = ""


def document_of(name: str, value: object, column: str) -> Iterator[Document]:
    """The documents in the text column of a row; if `value` is no text, a document with a problem."""
    if isinstance(value, str) and _NO_UTF8.search(value):
        yield Document(name, "", "not UTF-8")
    elif isinstance(value, str):
        yield from pieces(name, io.BytesIO(value.encode("utf-8", "replace")))
    else:
        yield Document(name, "", f"no text in {column!r}")


def pieces(name: str, stream: BinaryIO) -> Iterator[Document]:
    """Divide the text of a stream into documents of at most `MAX_DOCUMENT_BYTES`, holding no more than that in memory."""
    data = stream.read(MAX_DOCUMENT_BYTES + 1)
    part = 1
    while True:
        last = len(data) <= MAX_DOCUMENT_BYTES
        end = len(data) if last else _boundary(data)
        numbered = name if last and part == 1 else f"{name} part {part}"
        try:
            text = data[:end].decode("utf-8")
        except UnicodeDecodeError:
            yield Document(numbered, "", "not UTF-8")
            return
        yield Document(numbered, text.removeprefix(_BYTE_ORDER_MARK) if part == 1 else text)
        if last:
            return
        data = data[end:] + stream.read(end)
        part += 1


def _boundary(data: bytes) -> int:
    """Where to divide a long text: after a blank line, else a line, else a space, else between characters."""
    for mark in (b"\n\n", b"\n", b" "):
        found = data.rfind(mark, MAX_DOCUMENT_BYTES // 2, MAX_DOCUMENT_BYTES)
        if found >= 0:
            return found + len(mark)
    end = MAX_DOCUMENT_BYTES
    while end > MAX_DOCUMENT_BYTES - 3 and data[end] & 0xC0 == 0x80:  # inside a character
        end -= 1
    return end
