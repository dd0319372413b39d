"""A file as a stream of UTF-8. Compression is recognised by the first bytes, UTF-16 and UTF-32 by the byte order mark."""

import codecs
import io
import lzma
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

HEAD_BYTES = 8192
_COMPRESSED = {
    "gzip": rb"\x1f\x8b\x08",
    "bz2": rb"BZh[1-9]1AY&SY",
    "xz": rb"\xfd7zXZ\0",
    "zstd": rb"\x28\xb5\x2f\xfd",
}
_MARKS = {  # UTF-32 first: its little-endian mark begins with the one of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class UnreadableFile(Exception):
    """A file, or the rest of one, cannot be read. The message is the reason."""


@contextmanager
def open_stream(file: Path) -> Iterator[tuple[io.BufferedReader, bool]]:
    """The text of a file in UTF-8, without compression and byte order mark, and whether the file was compressed.

    Reading raises UnreadableFile if an archive is damaged or cut, or if text marked as UTF-16 or UTF-32 is invalid.
    """
    with ExitStack() as opened:
        stream: io.BufferedReader = io.BufferedReader(opened.enter_context(file.open("rb", buffering=0)), HEAD_BYTES)
        compression = next((name for name, magic in _COMPRESSED.items() if re.match(magic, stream.peek())), "")
        if compression:
            archive = opened.enter_context(_decompressed(stream, compression))
            stream = _buffered(archive.read, (OSError, EOFError, lzma.LZMAError), "damaged or cut archive")
        mark = stream.peek()[:4]
        if encoding := next((name for start, name in _MARKS.items() if mark.startswith(start)), ""):
            text = io.TextIOWrapper(stream, encoding, newline="")
            # A character becomes at most four bytes of UTF-8, so at most `size` bytes are returned.
            stream = _buffered(lambda size: text.read(max(1, size // 4)).encode(), (UnicodeError,), f"not {encoding.upper()}")
        elif mark.startswith(codecs.BOM_UTF8):
            stream.read(len(codecs.BOM_UTF8))
        yield stream, bool(compression)


def _decompressed(stream: io.BufferedReader, compression: str) -> Any:
    import pyarrow

    # Arrow's streams, like those of `lzma`, read concatenated archives, and raise an error if one ends too soon.
    return lzma.open(stream) if compression == "xz" else pyarrow.CompressedInputStream(stream, compression)


def _buffered(read: Callable[[int], bytes], errors: tuple[type[Exception], ...], problem: str) -> io.BufferedReader:
    return io.BufferedReader(_Reader(read, errors, problem), HEAD_BYTES)  # small: little is lost before the damage


class _Reader(io.RawIOBase):
    """A raw stream of the bytes that `read` returns. Its `errors` are raised as UnreadableFile."""

    def __init__(self, read: Callable[[int], bytes], errors: tuple[type[Exception], ...], problem: str) -> None:
        self._read, self._errors, self._problem = read, errors, problem

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._read(len(buffer))
        except self._errors:
            raise UnreadableFile(self._problem) from None
        buffer[: len(data)] = data
        return len(data)
