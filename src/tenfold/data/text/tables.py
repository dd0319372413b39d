"""Rows of tables: CSV and TSV, Parquet, Arrow."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from tenfold.data.text.documents import Document, document_of, rows_as_text
from tenfold.data.text.streams import UnreadableFile
from tenfold.spec.errors import TenfoldError, nearest

PARQUET, ARROW = (".parquet", ".pq"), (".arrow", ".feather", ".ipc")
MAX_FIELD_BYTES = 16 * 2**20  # of a field in CSV
BATCH_ROWS = 256  # of Parquet that are read at a time


def csv_rows(name: str, stream: BinaryIO, column: str, delimiters: str) -> Iterator[Document]:
    """The rows of a CSV file with a header. The delimiter is the first of `delimiters` with which the header has the column."""
    csv.field_size_limit(MAX_FIELD_BYTES)
    lines = rows_as_text(stream, newline="")
    number = 0
    try:
        header = lines.readline(MAX_FIELD_BYTES)
        found = ((mark, next(csv.reader([header], delimiter=mark), [])) for mark in delimiters)
        delimiter, names = next(((mark, names) for mark, names in found if column in names), ("", []))
        if not delimiter:
            yield Document(name, "", f"no column {column!r}")
            return
        for row in csv.reader(lines, delimiter=delimiter, strict=True):
            number += 1
            if len(row) == len(names):
                yield from document_of(f"{name}:{number}", row[names.index(column)], column)
            elif row:
                yield Document(f"{name}:{number}", "", "a row with more or fewer columns than the header")
    except csv.Error:
        yield Document(f"{name}:{number + 1}", "", "damaged or cut CSV")


def parquet_rows(file: Path, column: str) -> Iterator[Document]:
    """The rows of a Parquet file. Raises TenfoldError if it has no such column."""
    import pyarrow.parquet as parquet

    with _damage_named("Parquet"), parquet.ParquetFile(file) as table:
        _require_column(file, table.schema_arrow.names, column)
        yield from _rows(file, table.iter_batches(batch_size=BATCH_ROWS, columns=[column]), column)


def arrow_rows(file: Path, column: str) -> Iterator[Document]:
    """The rows of an Arrow file or stream (Feather; `datasets`). Raises TenfoldError if it has no such column."""
    with _damage_named("Arrow"), _arrow_reader(file) as (reader, batches):
        _require_column(file, reader.schema.names, column)
        yield from _rows(file, (batch.select([column]) for batch in batches), column)


def check_column(file: Path, column: str) -> None:
    """Raises TenfoldError if a Parquet or Arrow file has no such column. A damaged file is reported when it is read."""
    import pyarrow
    import pyarrow.parquet as parquet

    ending = file.suffix.lower()
    with suppress(pyarrow.ArrowInvalid, OSError):
        if ending in PARQUET:
            _require_column(file, parquet.read_schema(file).names, column)
        elif ending in ARROW:
            with _arrow_reader(file) as (reader, _):
                _require_column(file, reader.schema.names, column)


@contextmanager
def _arrow_reader(file: Path) -> Iterator[tuple[Any, Iterator[Any]]]:
    import pyarrow
    from pyarrow import ipc

    with pyarrow.memory_map(str(file)) as source:
        if source.read(6) == b"ARROW1":
            with ipc.open_file(source) as reader:
                yield reader, map(reader.get_batch, range(reader.num_record_batches))
        else:
            source.seek(0)
            with ipc.open_stream(source) as stream:
                yield stream, iter(stream)


@contextmanager
def _damage_named(kind: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowInvalid, OSError):
        raise UnreadableFile(f"damaged or cut {kind}") from None


def _rows(file: Path, batches: Iterator[Any], column: str) -> Iterator[Document]:
    number = 0
    for batch in batches:
        for value in batch.column(0):
            number += 1
            yield from document_of(f"{file}:{number}", value.as_py(), column)


def _require_column(file: Path, names: list[str], column: str) -> None:
    if column not in names:
        raise TenfoldError(
            f"{file} has no column {column!r}{nearest(column, names)}: it has {', '.join(names[:8])}; set --text-column."
        )
