"""Recognise the format of a file by its first bytes and its name, and read its documents."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

from tenfold.data.text.documents import Document, pieces
from tenfold.data.text.json_rows import MAX_LINE_BYTES, is_by_line, rows_by_line, rows_of_values
from tenfold.data.text.options import ReadOptions
from tenfold.data.text.streams import HEAD_BYTES, UnreadableFile, open_stream
from tenfold.data.text.tables import ARROW, PARQUET, arrow_rows, csv_rows, parquet_rows

_ARCHIVE_ENDINGS = (".gz", ".bz2", ".xz", ".zst", ".zstd")
_ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".xml": "xml",
    ".svg": "xml",
    ".md": "markdown",
    ".markdown": "markdown",
    ".ipynb": "notebook",
    **dict.fromkeys(PARQUET, "parquet"),
    **dict.fromkeys(ARROW, "arrow"),
}
_STARTS = {  # first bytes that decide the format, whatever the file's name
    rb"PAR1": "parquet",
    rb"ARROW1": "arrow",
}
_NO_TEXT = {
    rb"%PDF-": "PDF",
    rb"\{\\rtf": "RTF",
    rb"version https://git-lfs\.github\.com": "a pointer of Git LFS (git lfs pull fetches the file)",
}
_TEXT_STARTS = {  # first bytes that decide the format if the name does not
    rb'\s*(\[\s*)*\{\s*("([^"\\]|\\.)*"\s*:|\})': "json",
    rb"(?i)\s*<(!doctype html|html\b)": "html",
    rb"\s*<(\?xml|!doctype|svg)\b": "xml",
}


def documents_of(file: Path, options: ReadOptions) -> Iterator[Document]:
    """The documents of a file. If it, or its rest, cannot be read, the last document has a problem. Raises OSError,
    TenfoldError."""
    try:
        with open_stream(file) as (stream, was_compressed):
            yield from _documents(file, stream, was_compressed, options)
    except UnreadableFile as problem:
        yield Document(str(file), "", str(problem))


def _documents(file: Path, stream: io.BufferedReader, was_compressed: bool, options: ReadOptions) -> Iterator[Document]:
    head, name, column = stream.peek()[:HEAD_BYTES], str(file), options.text_column
    match kind := kind_of(file.name, head):
        case "parquet" | "arrow" if was_compressed:
            raise UnreadableFile("a compressed Parquet or Arrow file (unpack it)")
        case "parquet":
            yield from parquet_rows(file, column)
        case "arrow":
            yield from arrow_rows(file, column)
        case "jsonl" | "json" if is_by_line(head, kind == "jsonl"):
            yield from rows_by_line(name, stream, column)
        case "jsonl" | "json":
            yield from rows_of_values(name, stream, column)
        case "csv" | "tsv":
            yield from csv_rows(name, stream, column, "\t,;|" if kind == "tsv" else ",;\t|")
        case "text":
            yield from pieces(name, stream)
        case _:
            yield from _marked_up(kind, name, stream, options)


def kind_of(name: str, head: bytes) -> str:
    """The format of a file, by its name and its first bytes `head`. Raises UnreadableFile if it is no text."""
    for start, kind in _STARTS.items():
        if re.match(start, head):
            return kind
    for start, problem in _NO_TEXT.items():
        if re.match(start, head):
            raise UnreadableFile(problem)
    ending = _ending(name)
    if b"\0" in head and ending not in ARROW:
        raise UnreadableFile("binary")
    return _ENDINGS.get(ending) or next((kind for start, kind in _TEXT_STARTS.items() if re.match(start, head)), "text")


def _ending(name: str) -> str:
    path = Path(name.lower())
    return (path.with_suffix("") if path.suffix in _ARCHIVE_ENDINGS else path).suffix


def _marked_up(kind: str, name: str, stream: io.BufferedReader, options: ReadOptions) -> Iterator[Document]:
    wish = {"html": options.html, "xml": options.html, "markdown": options.markdown, "notebook": "text"}[kind]
    if wish == "source":
        yield from pieces(name, stream)
        return
    if kind == "xml" or wish == "skip":
        raise UnreadableFile("XML (--html source takes it as it stands)" if kind == "xml" else "HTML (--html says how it is read)")
    data = stream.read(MAX_LINE_BYTES + 1)
    if len(data) > MAX_LINE_BYTES:
        raise UnreadableFile(f"a page longer than {MAX_LINE_BYTES // 2**20} MiB")
    # The libraries for HTML and Markdown are imported only when such files are read.
    from tenfold.data.text import markup

    text = {"html": markup.html_text, "markdown": markup.markdown_text, "notebook": markup.notebook_text}[kind](data)
    yield from pieces(name, io.BytesIO(text.encode("utf-8", "replace")))
