"""Where text comes from: folders, files and the corpora that are on every machine. Everything streams."""

import ast
import io
import site
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tenfold.data.text.documents import Document, pieces
from tenfold.data.text.formats import documents_of
from tenfold.data.text.options import ReadOptions
from tenfold.data.text.tables import check_column
from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.files import read_facts

NAMED = ("stdlib", "torch-headers", "docstrings")
_DOCUMENTED = ("torch", "numpy", "scipy", "sympy", "networkx", "matplotlib", "pyarrow")  # what the project installs
_SKIPPED_FOLDERS = {".git", "__pycache__", "node_modules", ".venv"}


def read_documents(source: str | Path, options: ReadOptions = ReadOptions()) -> Iterator[Document]:
    """Stream the documents of a named corpus, a file or a folder, in a fixed order.

    A folder gives its files, sorted by path: those with rows (JSON, CSV, Parquet, Arrow) a document a row, all others one
    each. A text longer than `MAX_DOCUMENT_BYTES` becomes several documents, parted at a blank line, else a line, else a
    space; put together they are the text. What cannot be read (binary files, text that is not UTF-8, damaged archives)
    comes as a document with a problem, and all before it is kept.
    """
    documented = str(source) == "docstrings"
    for file in files_in(source):
        try:
            if file.is_dir():
                yield Document(str(file), "", "unreadable folder")
            elif not documented:
                yield from documents_of(file, options)
            elif prose := _docstrings(file.read_bytes()):
                yield from pieces(str(file), io.BytesIO(prose.encode()))
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
    """Raises TenfoldError where there is no such source, or a Parquet or Arrow file of it has no such column."""
    for file in files_in(source):
        check_column(file, text_column)


def files_of(path: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files below `path`, sorted, links followed; a folder that cannot be listed comes itself.

    A link to a folder that contains it (`above`) is skipped. Of a folder saved by `datasets` only the data files are given.
    """
    if not path.is_dir():
        yield path
        return
    here = (*above, path.resolve())
    try:
        entries = _saved(path) or sorted(path.iterdir())
    except OSError:
        yield path
        return
    for entry in entries:
        if entry.is_dir():
            if entry.name not in _SKIPPED_FOLDERS and entry.resolve() not in here:
                yield from files_of(entry, here)
        elif entry.is_file() or not entry.exists():  # a broken link is reported when it is read
            yield entry


def _saved(folder: Path) -> list[Path]:
    """The splits, or the shards, of what `datasets.save_to_disk` wrote, in order; none where the folder is another."""
    splits = read_facts(folder / "dataset_dict.json").get("splits")
    if isinstance(splits, list):
        return [folder / str(split) for split in splits]
    shards = read_facts(folder / "state.json").get("_data_files")
    names = [shard.get("filename") for shard in shards if isinstance(shard, dict)] if isinstance(shards, list) else []
    return [folder / str(name) for name in names if name]


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
