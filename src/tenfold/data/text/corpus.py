"""From text to a corpus on disk: clean documents, a tokenizer, and memory-mapped tokens.

    manifest.json  tokenizer.json  tokenizer_config.json  token_bytes.npy
    train-00000.bin ...  train-documents.bin  validation-00000.bin ...  validation-documents.bin

Each document is its tokens between <|begin_of_text|> and <|end_of_text|>. Documents stand in the order of their hashes,
so that neighbours have nothing in common, and those with the smallest hashes are the validation split.
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
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer

from tenfold.data.text.dedup import copies, near_copies
from tenfold.data.text.filters import quality_problem
from tenfold.data.text.shards import SHARD_TOKENS, Shards, ShardWriter, open_shards
from tenfold.data.text.sources import read_documents
from tenfold.data.text.spool import Spool
from tenfold.data.text.tokenizer import BEGIN, END, fast_encoder, save_tokenizer, token_bytes, train_tokenizer
from tenfold.spec.errors import TenfoldError
from tenfold.spec.units import si

FORMAT = 2
VALIDATION_SHARE = 0.03
TOKENIZER_SAMPLE_BYTES = 16 * 2**20
BATCH_BYTES = 8 * 2**20
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk. Sizes in tokens, and in bytes of clean text."""

    directory: Path
    manifest: dict[str, Any]

    def __reduce__(self) -> Any:
        """Another process opens the corpus again, and is sent no tokens."""
        return open_corpus, (self.directory,)

    @property
    def vocab_size(self) -> int:
        return self.manifest["vocab_size"]

    @property
    def is_remote(self) -> bool:
        """Whether tokens may have to come from an object store."""
        return False

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

    def tokens(self, split: str) -> Shards:
        """The memory-mapped tokens of `train` or `validation`."""
        return self._shards[split]

    def text(self, split: str, document: int) -> str:
        """The text of a document."""
        return self.tokenizer.decode(self.tokens(split).document(document)[1:-1].tolist())

    @cached_property
    def _shards(self) -> dict[str, Shards]:
        facts = self.manifest
        return {split: open_shards(self.directory, split, facts["dtype"], facts["shard_tokens"]) for split in SPLITS}


def build(
    source: str | Path,
    out: Path,
    *,
    vocab_size: int = 1024,
    text_column: str = "text",
    shard_tokens: int = SHARD_TOKENS,
    tokenizer_from: Path | None = None,
    quiet: bool = False,
) -> Corpus:
    """Clean, deduplicate, tokenize and write `source` to `out`; a corpus that is there already is opened.

    `source` is a folder, a file, or the name of a corpus that every machine has (`data.sources.NAMED`). With
    `tokenizer_from`, the folder of another corpus, its tokenizer is used and none is trained. Nothing is left at `out`
    unless all went well. Memory does not grow with the text, but for about 60 bytes a document; the disk holds the clean
    text once beside the tokens while it runs. Raises TenfoldError where nothing usable is found or the
    disk is full.
    """
    if tokenizer_from is not None:
        vocab_size = open_tokenizer(tokenizer_from).get_vocab_size()
    if (out / "manifest.json").exists():
        corpus = open_corpus(out)
        if tokenizer_from is not None and not same_tokenizer(out, tokenizer_from):
            raise TenfoldError(f"{out} holds a corpus with another tokenizer than {tokenizer_from}: choose another folder.")
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
        _write(source, scratch, vocab_size, text_column, shard_tokens, tokenizer_from, quiet)
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
        written, files = manifest["format"], manifest["files"]
    except (ValueError, KeyError, TypeError):
        raise TenfoldError(f"{path} is damaged: delete {directory} and build the corpus again.") from None
    if written != FORMAT:
        raise TenfoldError(f"{directory} has format {written} and not {FORMAT}: delete it and build the corpus again.")
    for name, facts in files.items():
        problem = _damage(directory / name, facts, verify)
        if problem:
            raise TenfoldError(f"The shard {directory / name} {problem}: delete {directory} and build the corpus again.")
    return Corpus(directory, manifest)


def _damage(file: Path, facts: dict[str, Any], verify: bool) -> str:
    if not file.exists():
        return "is missing"
    if file.stat().st_size != facts["bytes"]:
        return f"is damaged (it has {file.stat().st_size} bytes and not {facts['bytes']})"
    if verify and _facts(file) != facts:
        return "is damaged (its checksum is another)"
    return ""


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


def open_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a corpus. Raises TenfoldError where there is none of Tenfold's."""
    path = directory / "tokenizer.json"
    if not path.exists():
        raise TenfoldError(f"{directory} holds no tokenizer.json: name the folder of a corpus.")
    tokenizer = Tokenizer.from_file(str(path))
    if [tokenizer.token_to_id(token) for token in (BEGIN, END)] != [0, 1]:
        raise TenfoldError(f"The tokenizer in {path} is not one of a corpus: {BEGIN} and {END} must be its first tokens.")
    return tokenizer


def same_tokenizer(one: Path, other: Path) -> bool:
    """Whether two corpora have the same tokenizer, to the byte."""
    return (one / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


def _write(
    source: str | Path,
    scratch: Path,
    vocab_size: int,
    text_column: str,
    shard_tokens: int,
    tokenizer_from: Path | None,
    quiet: bool,
) -> None:
    began = time.perf_counter()
    spooled = scratch / "spool"
    spooled.mkdir()
    with Spool(spooled) as spool:
        report = _clean(source, spool, text_column, quiet)
        documents, report["dropped"] = _without_copies(spool, report["dropped"])
        report |= {"kept_documents": len(documents), "kept_bytes": int(documents["bytes"].sum(dtype=np.int64))}
        splits = _split(source, documents, report["dropped"])
        sample = _sample(spool, splits["train"])
        tokenizer = open_tokenizer(tokenizer_from) if tokenizer_from else train_tokenizer(sample, vocab_size)
        if tokenizer.get_vocab_size() < vocab_size:
            raise TenfoldError(
                f"The corpus {str(source)!r} is too small for a vocabulary of {vocab_size}: only "
                f"{tokenizer.get_vocab_size()} tokens were found; add text or ask for fewer."
            )
        save_tokenizer(tokenizer, scratch)
        np.save(scratch / "token_bytes.npy", token_bytes(tokenizer))
        dtype = "uint16" if vocab_size <= 2**16 else "uint32"
        sizes, files, rate = _tokenize(spool, splits, tokenizer, scratch, dtype, shard_tokens, quiet)
    shutil.rmtree(spooled)
    manifest = {
        "format": FORMAT,
        "source": str(source),
        "vocab_size": vocab_size,
        "dtype": dtype,
        "shard_tokens": shard_tokens,
        "splits": sizes,
        "cleaning": report,
        "tokenize_mb_per_s": rate,
        "seconds": time.perf_counter() - began,
        "files": {n: _facts(scratch / n) for n in ("tokenizer.json", "tokenizer_config.json", "token_bytes.npy")} | files,
    }
    (scratch / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _clean(source: str | Path, spool: Spool, text_column: str, quiet: bool) -> dict[str, Any]:
    """Put the documents of good quality in the spool; returns how many were read, and dropped for each reason."""
    dropped: dict[str, dict[str, Any]] = {}
    documents = size = 0
    began = time.perf_counter()
    with _bar(quiet) as bar:
        task = bar.add_task("cleaning", total=None, speed="")
        for document in read_documents(source, text_column):
            text = document.text.encode("utf-8", "replace")
            documents += 1
            size += len(text)
            rate = size / 1e6 / (time.perf_counter() - began)
            bar.update(task, description=f"cleaning {size / 1e6:.0f} MB", speed=f"{rate:.1f} MB/s")
            problem = document.problem or quality_problem(document.text)
            if problem:
                _drop(dropped, problem, len(text), document.name)
            else:
                spool.add(document.name, text)
    return {"documents": documents, "bytes": size, "dropped": dropped}


def _without_copies(spool: Spool, dropped: dict[str, dict[str, Any]]) -> tuple[np.ndarray, dict[str, dict[str, Any]]]:
    """The records of the documents that are no copies, sorted by key, and `dropped` with the copies."""
    records = spool.records()
    exact = copies(records["key"])
    near = near_copies(spool.signatures, ~exact)
    for problem, found in (("exact copy", exact), ("near copy", near)):
        if found.any():
            first = records[np.argmax(found)]
            size = int(records["bytes"][found].sum(dtype=np.int64))
            dropped[problem] = {"documents": int(found.sum()), "bytes": size, "example": spool.name(first)}
    kept = records[~(exact | near)]
    return kept[np.argsort(kept["key"], kind="stable")], dropped


def _split(source: str | Path, documents: np.ndarray, dropped: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """The records of each split: validation has the smallest keys, `VALIDATION_SHARE` of all but at least one."""
    if not len(documents):
        why = ", ".join(f"{entry['documents']} {problem}" for problem, entry in dropped.items()) or "it has no files"
        raise TenfoldError(f"The corpus {str(source)!r} has no usable text: {why}.")
    if len(documents) < 2:
        raise TenfoldError(
            f"The corpus {str(source)!r} has only one usable document, too few to keep some for validation: add documents, "
            "or cut long ones in parts."
        )
    validation = max(1, int(np.searchsorted(documents["key"], int(VALIDATION_SHARE * 2**64))))
    validation = min(validation, len(documents) - 1)
    return {"train": documents[validation:], "validation": documents[:validation]}


def _drop(dropped: dict[str, dict[str, Any]], problem: str, size: int, name: str) -> None:
    entry = dropped.setdefault(problem, {"documents": 0, "bytes": 0, "example": name})
    entry["documents"] += 1
    entry["bytes"] += size


def _sample(spool: Spool, documents: np.ndarray) -> Iterator[str]:
    """Text that the tokenizer is trained on: the first documents, which are a random sample, as they are sorted by hash."""
    given = 0
    for text in spool.texts(documents):
        yield text.decode("utf-8")
        given += len(text)
        if given >= TOKENIZER_SAMPLE_BYTES:
            return


def _tokenize(
    spool: Spool, splits: dict[str, np.ndarray], tokenizer: Tokenizer, scratch: Path, dtype: str, size: int, quiet: bool
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, Any]], float]:
    """Write both splits with all cores (the encoder's own threads). Returns their sizes, the files, and MB/s."""
    encoder, threads = fast_encoder(tokenizer), len(os.sched_getaffinity(0))
    begin, end = 0, 1
    sizes: dict[str, dict[str, int]] = {}
    files: dict[str, dict[str, Any]] = {}
    total = sum(int(documents["bytes"].sum(dtype=np.int64)) for documents in splits.values())
    began, done, rate = time.perf_counter(), 0, 0.0
    with _bar(quiet) as bar:
        task = bar.add_task("tokenizing", total=total, speed="")
        for split, documents in splits.items():
            before = done
            with ShardWriter(scratch, split, dtype, size) as writer:
                for group in _groups(spool.texts(documents)):
                    texts = [text.decode("utf-8") for text in group]
                    for ids in encoder.encode_ordinary_batch(texts, num_threads=threads):
                        writer.write(np.array([begin, *ids, end], dtype=dtype))
                    done += sum(map(len, group))
                    rate = done / 1e6 / (time.perf_counter() - began)
                    bar.update(task, completed=done, speed=f"{rate:.1f} MB/s")
            sizes[split] = {"documents": writer.documents, "tokens": writer.tokens, "bytes": done - before}
            files |= writer.files
    return sizes, files, rate


def _groups(texts: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Texts in groups of about `BATCH_BYTES`, enough for every core."""
    group: list[bytes] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _bar(quiet: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)


def _facts(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
