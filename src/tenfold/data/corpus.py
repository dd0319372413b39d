"""From text to a corpus on disk: clean documents, a tokeniser, and memory-mapped tokens.

    manifest.json  tokenizer.json  tokenizer_config.json  token_bytes.npy  train.bin  validation.bin

Each document is its tokens between <|begin_of_text|> and <|end_of_text|>; a document goes to validation by its hash.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import zstandard
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer

from tenfold.data.filters import CopyFinder, quality_problem
from tenfold.data.sources import Document, read_documents
from tenfold.data.tokenizer import fast_encoder, save_tokenizer, token_bytes, train_tokenizer
from tenfold.spec.errors import TenfoldError
from tenfold.spec.units import si

FORMAT = 1
VALIDATION_SHARE = 0.03
TOKENIZER_SAMPLE_BYTES = 16 * 2**20
BATCH_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk. Sizes in tokens, and in bytes of clean text."""

    directory: Path
    manifest: dict[str, Any]

    @property
    def vocab_size(self) -> int:
        return self.manifest["vocab_size"]

    @property
    def train_tokens(self) -> int:
        return self.manifest["splits"]["train"]["tokens"]

    @property
    def validation_tokens(self) -> int:
        return self.manifest["splits"]["validation"]["tokens"]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.directory / "tokenizer.json"))

    @cached_property
    def token_bytes(self) -> np.ndarray:
        return np.load(self.directory / "token_bytes.npy")

    def tokens(self, split: str) -> np.ndarray:
        """The memory-mapped tokens of `train` or `validation`."""
        return self._maps[split]

    @cached_property
    def _maps(self) -> dict[str, np.ndarray]:
        dtype = np.dtype(self.manifest["dtype"])
        return {s: np.memmap(self.directory / f"{s}.bin", dtype, "r") for s in ("train", "validation")}


def build(
    source: str | Path,
    out: Path,
    *,
    vocab_size: int = 1024,
    text_column: str = "text",
    quiet: bool = False,
) -> Corpus:
    """Clean, deduplicate, tokenise and write `source` to `out`; a corpus that is there already is opened.

    `source` is a folder, a file, or the name of a corpus that every machine has (`data.sources.NAMED`). Nothing is
    left at `out` unless all went well. Raises TenfoldError where nothing usable is found or the disk is full.
    """
    if (out / "manifest.json").exists():
        corpus = open_corpus(out)
        if corpus.vocab_size == vocab_size and corpus.manifest["source"] == str(source):
            return corpus
        raise TenfoldError(
            f"{out} holds a corpus of {corpus.manifest['source']!r} with {corpus.vocab_size} tokens in its vocabulary: "
            "choose another folder."
        )
    if vocab_size < 258:
        raise TenfoldError(f"A byte-level vocabulary needs at least 258 tokens, not {vocab_size}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write(source, scratch, vocab_size, text_column, quiet)
        scratch.replace(out)
    except OSError as error:
        raise TenfoldError(f"The corpus could not be written to {out}: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return open_corpus(out)


def open_corpus(directory: Path, verify: bool = False) -> Corpus:
    """Open a corpus. Sizes are always checked, checksums with `verify`. Raises TenfoldError for a damaged one."""
    path = directory / "manifest.json"
    if not path.exists():
        raise TenfoldError(f"{directory} holds no corpus: make one with `tenfold data build`.")
    try:
        manifest = json.loads(path.read_text())
        files = manifest["files"]
    except (ValueError, KeyError):
        raise TenfoldError(f"{path} is damaged: delete {directory} and build the corpus again.") from None
    for name, facts in files.items():
        file = directory / name
        if not file.exists() or file.stat().st_size != facts["bytes"] or (verify and _sha256(file) != facts["sha256"]):
            raise TenfoldError(f"The shard {file} is damaged: delete {directory} and build the corpus again.")
    return Corpus(directory, manifest)


def require_tokens(corpus: Corpus, needed: float, max_epochs: float) -> float:
    """How often the corpus is read for `needed` tokens. Raises TenfoldError where that is more than `max_epochs`."""
    epochs = needed / max(1, corpus.train_tokens)
    if epochs > max_epochs:
        missing = (needed / max_epochs - corpus.train_tokens) / max(1, corpus.train_tokens)
        size = missing * corpus.manifest["splits"]["train"]["bytes"]
        raise TenfoldError(
            f"The corpus has {si(corpus.train_tokens, 'tokens')} and the run needs {si(needed, 'tokens')}, which is "
            f"{epochs:.1f} readings where {max_epochs:g} are allowed: add {si(size, 'B')} of text or ask for less compute."
        )
    return epochs


def _write(source: str | Path, scratch: Path, vocab_size: int, text_column: str, quiet: bool) -> None:
    began = time.perf_counter()
    kept = scratch / "kept.zst"
    report = _clean(source, kept, text_column, quiet)
    tokenizer = train_tokenizer(_sample(kept), vocab_size)
    if tokenizer.get_vocab_size() < vocab_size:
        raise TenfoldError(
            f"The corpus {str(source)!r} is too small for a vocabulary of {vocab_size}: only "
            f"{tokenizer.get_vocab_size()} tokens were found; add text or ask for fewer."
        )
    save_tokenizer(tokenizer, scratch)
    np.save(scratch / "token_bytes.npy", token_bytes(tokenizer))
    dtype = "uint16" if vocab_size <= 2**16 else "uint32"
    splits, rate = _tokenise(kept, tokenizer, scratch, dtype, report["kept_bytes"], quiet)
    kept.unlink()
    names = ["tokenizer.json", "token_bytes.npy", "train.bin", "validation.bin"]
    manifest = {
        "format": FORMAT,
        "source": str(source),
        "vocab_size": vocab_size,
        "dtype": dtype,
        "splits": splits,
        "cleaning": report,
        "tokenise_mb_per_s": rate,
        "seconds": time.perf_counter() - began,
        "files": {n: {"bytes": (scratch / n).stat().st_size, "sha256": _sha256(scratch / n)} for n in names},
    }
    (scratch / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _clean(source: str | Path, kept: Path, text_column: str, quiet: bool) -> dict[str, Any]:
    """Write the documents worth keeping to `kept`; returns how many were dropped for each reason, with an example."""
    copies = CopyFinder()
    dropped: dict[str, dict[str, Any]] = {}
    counts = {"documents": 0, "bytes": 0, "kept_documents": 0, "kept_bytes": 0}
    validation = 0
    with kept.open("wb") as file, zstandard.ZstdCompressor(level=1).stream_writer(file) as stream, _bar(quiet) as bar:
        task = bar.add_task("cleaning", total=None, speed="")
        for document in read_documents(source, text_column):
            size = len(document.text.encode("utf-8", "replace"))
            counts["documents"] += 1
            counts["bytes"] += size
            bar.update(task, description=f"cleaning {counts['bytes'] / 1e6:.0f} MB")
            problem = document.problem
            usable = not problem or problem.endswith("cut")
            if usable:
                problem = quality_problem(document.text) or copies.problem(document.text) or problem
                usable = not problem or problem.endswith("cut")
            if problem:
                entry = dropped.setdefault(problem, {"documents": 0, "bytes": 0, "example": document.name})
                entry["documents"] += 1
                entry["bytes"] += size
            if usable:
                data = document.text.encode("utf-8", "replace")
                split = _is_validation(data)
                validation += split
                counts["kept_documents"] += 1
                counts["kept_bytes"] += len(data)
                stream.write(bytes([split]) + len(data).to_bytes(4, "little") + data)
    if not counts["kept_documents"]:
        why = ", ".join(f"{v['documents']} {k}" for k, v in dropped.items()) or "it has no files"
        raise TenfoldError(f"The corpus {str(source)!r} has no usable text: {why}.")
    if not 0 < validation < counts["kept_documents"]:
        raise TenfoldError(
            f"The corpus {str(source)!r} has only {counts['kept_documents']} usable documents, too few to keep some for "
            "validation: add documents, or cut long ones in parts."
        )
    return {**counts, "dropped": dropped}


def _is_validation(data: bytes) -> bool:
    return int.from_bytes(hashlib.sha256(b"split" + data).digest()[:4], "little") < VALIDATION_SHARE * 2**32


def _documents(kept: Path) -> Iterator[tuple[bool, bytes]]:
    with kept.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        while header := _read(stream, 5):
            yield bool(header[0]), _read(stream, int.from_bytes(header[1:], "little"))


def _read(stream: BinaryIO | zstandard.ZstdDecompressionReader, size: int) -> bytes:
    parts = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _sample(kept: Path) -> Iterator[str]:
    """Training documents for the tokeniser, evenly over the corpus, up to `TOKENIZER_SAMPLE_BYTES`."""
    total = sum(len(data) for _, data in _documents(kept))
    share, due, given = min(1.0, TOKENIZER_SAMPLE_BYTES / total), 0.0, 0
    for validation, data in _documents(kept):
        due += share * len(data)
        if not validation and given < due:
            given += len(data)
            yield data.decode("utf-8")


def _tokenise(
    kept: Path, tokenizer: Tokenizer, scratch: Path, dtype: str, total_bytes: int, quiet: bool
) -> tuple[dict[str, dict[str, int]], float]:
    """Write both splits with all cores (the encoder's own threads). Returns their sizes and MB/s."""
    encoder, threads = fast_encoder(tokenizer), len(os.sched_getaffinity(0))
    begin, end = 0, 1
    splits = {name: {"documents": 0, "tokens": 0, "bytes": 0} for name in ("train", "validation")}
    began = time.perf_counter()
    done = 0
    with (
        (scratch / "train.bin").open("wb") as train,
        (scratch / "validation.bin").open("wb") as validation,
        _bar(quiet) as bar,
    ):
        task = bar.add_task("tokenising", total=total_bytes, speed="")
        files = {"train": train, "validation": validation}
        for group in _groups(_documents(kept)):
            encoded = encoder.encode_ordinary_batch([d.decode("utf-8") for _, d in group], num_threads=threads)
            for (is_validation, data), ids in zip(group, encoded, strict=True):
                name = "validation" if is_validation else "train"
                tokens = np.array([begin, *ids, end], dtype=dtype)
                tokens.tofile(files[name])
                splits[name]["documents"] += 1
                splits[name]["tokens"] += len(tokens)
                splits[name]["bytes"] += len(data)
                done += len(data)
            rate = done / 1e6 / (time.perf_counter() - began)
            bar.update(task, completed=done, speed=f"{rate:.1f} MB/s")
    return splits, done / 1e6 / (time.perf_counter() - began)


def _groups(documents: Iterator[tuple[bool, bytes]]) -> Iterator[list[tuple[bool, bytes]]]:
    """Documents in groups of about `BATCH_BYTES`, enough for every core."""
    group: list[tuple[bool, bytes]] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document[1])
        if size >= BATCH_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _bar(quiet: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def examples(corpus: Corpus, count: int = 3) -> list[Document]:
    """The first validation documents, decoded."""
    tokens = corpus.tokens("validation")
    ends = islice(np.flatnonzero(tokens == 1), count)
    start, found = 0, []
    for end in ends:
        found.append(Document(f"validation:{start}", corpus.tokenizer.decode(tokens[start:end].tolist())))
        start = int(end) + 1
    return found
