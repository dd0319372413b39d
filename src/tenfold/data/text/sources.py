"""The sources of text: folders, files, and named corpora that exist on every machine. All are read as streams."""

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

NAMED = ("stdlib", "torch-headers", "docstrings")  # made of what is installed with Tenfold
_DOCUMENTED = ("torch", "numpy", "scipy", "sympy", "networkx", "matplotlib", "pyarrow")  # packages that Tenfold installs
_SKIPPED_FOLDERS = {".git", "__pycache__", "node_modules", ".venv"}


def read_documents(source: str | Path, options: ReadOptions = ReadOptions()) -> Iterator[Document]:
    """Stream the documents of a named corpus, a file or a folder, in a fixed order.

    The files of a folder come sorted by path. A file with rows (JSON, CSV, Parquet, Arrow) gives one document per row, any other
    file one document. A text longer than `MAX_DOCUMENT_BYTES` becomes several documents, divided at a blank line, else a line,
    else a space; joined they are the whole text. What cannot be read (binary files, text that is not UTF-8, damaged archives)
    gives a document with a problem; the documents before it are kept. Raises TenfoldError if there is no such source.
    """
    documented = str(source) == "docstrings"
    for file in files_in(source):
        try:
            if file.is_dir():
                yield Document(str(file), "", "unreadable folder")
            elif not documented:
                yield from documents_of(file, options)
            elif prose := _docstrings(file.read_bytes()):
                yield from pieces(str(file), io.BytesIO(prose.encode("utf-8", "replace")))
        except OSError as error:
            yield Document(str(file), "", f"unreadable ({error.strerror or error})")


def files_in(source: str | Path) -> Iterator[Path]:
    """The files of a source, in the order in which they are read. Raises TenfoldError if there is no such source."""
    if str(source) in NAMED:
        yield from _named(str(source))
        return
    path = Path(source)
    if is_corpus(source):
        raise TenfoldError(f"{source} is a corpus and no text: give it to a run as it is, or name the text that it was made from.")
    if not path.exists():
        raise TenfoldError(
            f"There is no corpus {str(source)!r}: give a folder, a file, or one of {', '.join(NAMED)}{nearest(path.name, NAMED)}."
        )
    yield from files_of(path)


def is_corpus(source: str | Path) -> bool:
    """Whether `source` is the folder of a corpus that is already built."""
    return str(source) not in NAMED and all((Path(source) / name).exists() for name in ("manifest.json", "tokenizer.json"))


def where(source: str | Path) -> str:
    """The name of a named corpus, or else the absolute path of the text."""
    return str(source) if str(source) in NAMED else str(Path(source).resolve())


def check_columns(source: str | Path, text_column: str) -> None:
    """Raises TenfoldError if there is no such source, or if a Parquet or Arrow file in it lacks the column."""
    for file in files_in(source):
        check_column(file, text_column)


def files_of(path: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files in and below `path`, sorted. Links are followed; a folder that cannot be listed is yielded itself.

    A link to a folder that contains it (one of `above`) is skipped. Of a folder that `datasets` saved, only the data files count.
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
        elif entry.is_file() or not entry.exists():  # a broken link: reading it reports the problem
            yield entry


def _saved(folder: Path) -> list[Path]:
    """The splits or the data files in a folder that `datasets.save_to_disk` wrote, in order; for any other folder an empty list."""
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
    """The docstrings of a Python file, each after the name of what it documents."""
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
