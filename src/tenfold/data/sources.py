"""Where text comes from: folders, files and the corpora that are on every machine. Everything streams."""

import ast
import gzip
import io
import json
import site
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tenfold.spec.errors import TenfoldError, nearest

NAMED = ("stdlib", "torch-headers", "docstrings")
_DOCUMENTED = ("torch", "numpy", "scipy", "sympy", "networkx", "matplotlib", "pyarrow")  # what the project installs
MAX_DOCUMENT_BYTES = 8 * 2**20
_STRUCTURED = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
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
    document a row, all others one each. Binary files and text that is not UTF-8 come as documents with a problem, and
    so do longer ones than `MAX_DOCUMENT_BYTES`, after being cut there.
    """
    if str(source) in NAMED:
        yield from _named(str(source))
        return
    path = Path(source)
    if not path.exists():
        raise TenfoldError(
            f"There is no corpus {str(source)!r}: give a folder, a file, or one of {', '.join(NAMED)}"
            f"{nearest(str(source), NAMED)}."
        )
    for file in _files(path):
        name = file.name.lower()
        try:
            if name.endswith(".parquet"):
                yield from _parquet(file, text_column)
            elif name.endswith(_STRUCTURED):
                yield from _jsonl(file, text_column)
            else:
                yield _text(file)
        except OSError as error:
            yield Document(str(file), "", f"unreadable ({error.strerror or error})")


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise TenfoldError(f"The folder {path} cannot be read: {error.strerror}.") from None
    for entry in entries:
        if entry.is_symlink() or entry.name in _SKIPPED_FOLDERS:
            continue
        if entry.is_dir():
            yield from _files(entry)
        elif entry.is_file():
            yield entry


def _text(file: Path) -> Document:
    with file.open("rb") as stream:
        data = stream.read(MAX_DOCUMENT_BYTES + 1)
    if b"\0" in data[:8192]:
        return Document(str(file), "", "binary")
    return _decoded(str(file), data)


def _decoded(name: str, data: bytes) -> Document:
    cut = len(data) > MAX_DOCUMENT_BYTES
    data = data[:MAX_DOCUMENT_BYTES]
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character may be cut in two at the end of a document that is too long; anything else is not UTF-8.
        if not (cut and error.start > len(data) - 4):
            return Document(name, "", "not UTF-8")
        text = data[: error.start].decode("utf-8")
    return Document(name, text, "too long, cut" if cut else "")


def _jsonl(file: Path, column: str) -> Iterator[Document]:
    with file.open("rb") as raw:
        stream: io.BufferedIOBase
        if file.name.endswith(".gz"):
            stream = gzip.GzipFile(fileobj=raw)
        elif file.name.endswith(".zst"):
            import zstandard

            stream = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw))
        else:
            stream = raw
        number = 0
        while True:
            try:
                line = stream.readline(2 * MAX_DOCUMENT_BYTES)
            except Exception as error:  # gzip, zlib and zstandard each raise their own
                yield Document(f"{file}:{number + 1}", "", f"damaged archive ({type(error).__name__})")
                return
            if not line:
                return
            number += 1
            name = f"{file}:{number}"
            if not line.endswith(b"\n") and len(line) == 2 * MAX_DOCUMENT_BYTES:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(2 * MAX_DOCUMENT_BYTES)
                yield Document(name, "", "line too long")
                continue
            try:
                row = json.loads(line)
            except ValueError:
                yield Document(name, "", "not JSON")
                continue
            text = row.get(column) if isinstance(row, dict) else None
            if isinstance(text, str):
                yield _decoded(name, text.encode("utf-8", "replace"))
            else:
                yield Document(name, "", f"no text in {column!r}")


def _parquet(file: Path, column: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid:
        yield Document(str(file), "", "damaged Parquet")
        return
    if column not in table.schema_arrow.names:
        names = table.schema_arrow.names
        raise TenfoldError(
            f"{file} has no column {column!r}{nearest(column, names)}: it has {', '.join(names[:8])}; say --text-column."
        )
    number = 0
    for batch in table.iter_batches(batch_size=256, columns=[column]):
        for value in batch.column(0):
            number += 1
            text = value.as_py()
            if isinstance(text, str):
                yield _decoded(f"{file}:{number}", text.encode("utf-8", "replace"))


def _named(name: str) -> Iterator[Document]:
    stdlib = Path(sysconfig.get_path("stdlib"))
    packages = [Path(folder) for folder in site.getsitepackages()]
    if name == "stdlib":
        for file in _files(stdlib):
            if file.suffix == ".py" and "site-packages" not in file.parts:
                yield _text(file)
    elif name == "torch-headers":
        for folder in packages:
            for file in _files(folder / "torch" / "include") if (folder / "torch" / "include").exists() else ():
                if file.suffix in (".h", ".hpp", ".cuh"):
                    yield _text(file)
    else:
        for folder in [stdlib, *(package / library for package in packages for library in _DOCUMENTED)]:
            for file in _files(folder) if folder.exists() else ():
                if file.suffix == ".py" and not (folder == stdlib and "site-packages" in file.parts):
                    prose = _docstrings(_text(file).text)
                    if prose:
                        yield Document(str(file), prose)


def _docstrings(code: str) -> str:
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
