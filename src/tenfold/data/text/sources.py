"""Where text comes from: folders, files and the corpora that are on every machine. Everything streams."""

import ast
import io
import json
import site
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from tenfold.spec.errors import TenfoldError, nearest

NAMED = ("stdlib", "torch-headers", "docstrings")
_DOCUMENTED = ("torch", "numpy", "scipy", "sympy", "networkx", "matplotlib", "pyarrow")  # what the project installs
MAX_DOCUMENT_BYTES = 2**20  # more tokens than the longest context that is trained
MAX_LINE_BYTES = 16 * 2**20
_COMPRESSION = {".jsonl": None, ".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}
_SKIPPED_FOLDERS = {".git", "__pycache__", "node_modules", ".venv"}


@dataclass(frozen=True)
class Document:
    """One text, where it is from, and, where it could not be read, why (then the text is empty)."""

    name: str
    text: str
    problem: str = ""


def read_documents(source: str | Path, text_column: str = "text") -> Iterator[Document]:
    """Stream the documents of a named corpus, a file or a folder, in a fixed order.

    A folder gives its files, sorted by path: structured ones (`.jsonl`, `.jsonl.gz`, `.jsonl.zst`, `.parquet`) a
    document a row, all others one each. A text longer than `MAX_DOCUMENT_BYTES` becomes several documents, parted at a
    blank line, else a line, else a space; put together they are the text. What cannot be read (binary files, text that
    is not UTF-8, damaged archives) comes as a document with a problem, and all before it is kept.
    """
    documented = str(source) == "docstrings"
    for file in files_in(source):
        name = file.name.lower()
        ending = next((e for e in _COMPRESSION if name.endswith(e)), None)
        try:
            if file.is_dir():
                yield Document(str(file), "", "unreadable folder")
            elif documented:
                if prose := _docstrings(file.read_bytes()):
                    yield from _pieces(str(file), io.BytesIO(prose.encode()))
            elif name.endswith(".parquet"):
                yield from _parquet(file, text_column)
            elif ending:
                yield from _jsonl(file, _COMPRESSION[ending], text_column)
            else:
                yield from _text_file(file)
        except OSError as error:
            yield Document(str(file), "", f"unreadable ({error.strerror or error})")


def files_in(source: str | Path) -> Iterator[Path]:
    """The files that the documents of a source are read from, in order. Raises TenfoldError where there is no such source."""
    if str(source) in NAMED:
        yield from _named(str(source))
        return
    path = Path(source)
    if is_corpus(source):
        raise TenfoldError(f"{source} is a corpus and no text: give it to a run as it is, or name the text that it was made of.")
    if not path.exists():
        raise TenfoldError(
            f"There is no corpus {str(source)!r}: give a folder, a file, or one of {', '.join(NAMED)}{nearest(path.name, NAMED)}."
        )
    yield from files_of(path)


def is_corpus(source: str | Path) -> bool:
    """Whether `source` is a folder with a corpus in it, which needs no building."""
    return str(source) not in NAMED and all((Path(source) / name).exists() for name in ("manifest.json", "tokenizer.json"))


def where(source: str | Path) -> str:
    """The name of a named corpus, or where the text is, from any folder."""
    return str(source) if str(source) in NAMED else str(Path(source).resolve())


def check_columns(source: str | Path, text_column: str) -> None:
    """Raises TenfoldError where there is no such source, or a Parquet file of it has no such column."""
    import pyarrow
    import pyarrow.parquet as parquet

    for file in files_in(source):
        if file.name.lower().endswith(".parquet"):
            with suppress(pyarrow.ArrowInvalid, OSError):  # what is damaged is left out when it is read
                _require_column(file, parquet.read_schema(file).names, text_column)


def files_of(path: Path) -> Iterator[Path]:
    """The files below `path`, sorted; a folder that cannot be listed comes itself."""
    if not path.is_dir():
        yield path
        return
    try:
        entries = sorted(path.iterdir())
    except OSError:
        yield path
        return
    for entry in entries:
        if entry.is_symlink() or entry.name in _SKIPPED_FOLDERS:
            continue
        if entry.is_dir():
            yield from files_of(entry)
        elif entry.is_file():
            yield entry


def _text_file(file: Path) -> Iterator[Document]:
    with file.open("rb") as stream:
        if b"\0" in stream.read(8192):
            yield Document(str(file), "", "binary")
            return
        stream.seek(0)
        yield from _pieces(str(file), stream)


def _pieces(name: str, stream: BinaryIO) -> Iterator[Document]:
    """The text of a stream as documents of at most `MAX_DOCUMENT_BYTES`, without ever holding more."""
    data = stream.read(MAX_DOCUMENT_BYTES + 1)
    part = 1
    while True:
        last = len(data) <= MAX_DOCUMENT_BYTES
        end = len(data) if last else _boundary(data)
        numbered = name if last and part == 1 else f"{name} part {part}"
        try:
            yield Document(numbered, data[:end].decode("utf-8"))
        except UnicodeDecodeError:
            yield Document(numbered, "", "not UTF-8")
            return
        if last:
            return
        data = data[end:] + stream.read(end)
        part += 1


def _boundary(data: bytes) -> int:
    """Where to part a text that is too long: after a blank line, else a line, else a space, else between characters."""
    for mark in (b"\n\n", b"\n", b" "):
        found = data.rfind(mark, MAX_DOCUMENT_BYTES // 2, MAX_DOCUMENT_BYTES)
        if found >= 0:
            return found + len(mark)
    end = MAX_DOCUMENT_BYTES
    while end > MAX_DOCUMENT_BYTES - 3 and data[end] & 0xC0 == 0x80:  # inside a character
        end -= 1
    return end


def _jsonl(file: Path, compression: str | None, column: str) -> Iterator[Document]:
    import pyarrow

    # Arrow's streams read several archives behind one another, and raise where one ends too soon; a small buffer then
    # loses little of what came before.
    with pyarrow.input_stream(str(file), compression=compression) as raw:
        stream = io.BufferedReader(cast(io.RawIOBase, raw), 8192)
        number = 0
        while True:
            name = f"{file}:{number + 1}"
            try:
                line = stream.readline(MAX_LINE_BYTES)
                too_long = len(line) == MAX_LINE_BYTES and not line.endswith(b"\n")
                while too_long and line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE_BYTES)
            except OSError as error:
                yield Document(name, "", "damaged or cut archive" if compression else f"unreadable ({error})")
                return
            if not line and not too_long:
                return
            number += 1
            if too_long:
                yield Document(name, "", f"a line longer than {MAX_LINE_BYTES // 2**20} MiB")
                continue
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError:
                yield Document(name, "", "not UTF-8")
                continue
            except (ValueError, RecursionError):
                yield Document(name, "", "not JSON")
                continue
            yield from _row(name, row.get(column) if isinstance(row, dict) else None, column)


def _row(name: str, text: object, column: str) -> Iterator[Document]:
    if isinstance(text, str):
        yield from _pieces(name, io.BytesIO(text.encode("utf-8", "replace")))
    else:
        yield Document(name, "", f"no text in {column!r}")


def _parquet(file: Path, column: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet as parquet

    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            _require_column(file, table.schema_arrow.names, column)
            for batch in table.iter_batches(batch_size=256, columns=[column]):
                for value in batch.column(0):
                    number += 1
                    yield from _row(f"{file}:{number}", value.as_py(), column)
    except (pyarrow.ArrowInvalid, OSError):
        yield Document(f"{file}:{number + 1}", "", "damaged or cut Parquet")


def _require_column(file: Path, names: list[str], column: str) -> None:
    if column not in names:
        raise TenfoldError(
            f"{file} has no column {column!r}{nearest(column, names)}: it has {', '.join(names[:8])}; say --text-column."
        )


def _named(name: str) -> Iterator[Path]:
    stdlib = Path(sysconfig.get_path("stdlib"))
    packages = [Path(folder) for folder in site.getsitepackages()]
    endings: tuple[str, ...] = (".py",)
    if name == "torch-headers":
        folders, endings = [package / "torch" / "include" for package in packages], (".h", ".hpp", ".cuh")
    else:
        documented = [package / library for package in packages for library in _DOCUMENTED]
        folders = [stdlib, *(documented if name == "docstrings" else ())]
    for folder in filter(Path.exists, folders):
        for file in files_of(folder):
            if file.suffix in endings and not (folder == stdlib and "site-packages" in file.parts):
                yield file


def _docstrings(code: bytes) -> str:
    """The docstrings of a Python file, each under the name that it describes."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    parts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) > 60:
                parts.append(f"{getattr(node, 'name', 'module')}: {text}")
    return "\n\n".join(parts)
