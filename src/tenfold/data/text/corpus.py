"""A corpus on disk: memory-mapped tokens, the tokenizer that made them, and a report of what was left out.

    manifest.json  tokenizer.json  tokenizer_config.json  generation_config.json  token_bytes.npy
    train-00000.bin ...  train-documents.bin  validation-00000.bin ...  validation-documents.bin

Each document is stored as the token that begins a text (if the vocabulary has one), its own tokens, and the token that ends a
document. Documents are sorted by their hashes, so that neighbours are unrelated; those with the smallest hashes are the validation
split.
"""

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from tenfold.data.fingerprint import digest, fingerprint, known_in
from tenfold.data.text.clean import clean, progress_bar, sample
from tenfold.data.text.encode import TextEncoder, token_bytes
from tenfold.data.text.filters import chosen
from tenfold.data.text.options import TextOptions
from tenfold.data.text.shards import SHARD_TOKENS, Shards, ShardWriter, open_shards
from tenfold.data.text.sources import check_columns, files_in, where
from tenfold.data.text.spool import Spool
from tenfold.data.text.tokenizer import SMALLEST_VOCABULARY, train_tokenizer, trained_vocabulary
from tenfold.model.io.tokenizer import copy_tokenizer, read_tokenizer, read_vocabulary, save_tokenizer, tokenizer_hash
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import atomic_folder, file_sha256, write_json
from tenfold.spec.units import si
from tenfold.spec.versions import require_version
from tenfold.spec.vocabulary import Vocabulary

FORMAT = 3  # of manifest.json
BATCH_BYTES = 8 * 2**20  # of text that is tokenized at once
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk; `manifest` is its manifest.json, with sizes in documents, tokens, and bytes of clean text."""

    directory: Path
    manifest: dict[str, Any]

    def __reduce__(self) -> Any:
        """Pickle only the path: another process opens the corpus again."""
        return open_corpus, (self.directory,)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return msgspec.convert(self.manifest["vocabulary"], Vocabulary)

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    @property
    def is_remote(self) -> bool:
        """Whether tokens may have to be fetched from an object store."""
        return False

    @cached_property
    def fingerprint(self) -> str:
        """A hash of its tokens and its tokenizer, the same for equal corpora in any place."""
        return digest({name: facts["sha256"] for name, facts in self.manifest["files"].items()})

    def opening(self, tokens: int) -> str:
        """The beginning of a validation document, at most `tokens` tokens: a prompt that is not in the training text."""
        first = self.tokens("validation").document(0)[len(self.vocabulary.begin) : -1]
        return self.tokenizer.decode(first[:tokens].tolist()).strip("\ufffd")

    @property
    def train_tokens(self) -> int:
        return self.manifest["splits"]["train"]["tokens"]

    @property
    def validation_tokens(self) -> int:
        return self.manifest["splits"]["validation"]["tokens"]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.directory)

    @cached_property
    def token_bytes(self) -> np.ndarray:
        return np.load(self.directory / "token_bytes.npy")

    def tokens(self, split: str) -> Shards:
        """The memory-mapped tokens of `train` or `validation`."""
        return self._shards[split]

    def text(self, split: str, document: int) -> str:
        """The text of the document of this number in a split."""
        return self.tokenizer.decode(self.tokens(split).document(document)[len(self.vocabulary.begin) : -1].tolist())

    @cached_property
    def _shards(self) -> dict[str, Shards]:
        facts = self.manifest
        return {split: open_shards(self.directory, split, facts["dtype"], facts["shard_tokens"]) for split in SPLITS}


def build(
    source: str | Path,
    out: Path,
    *,
    vocab_size: int = 1024,
    tokenizer_from: Path | None = None,
    options: TextOptions = TextOptions(),
    quiet: bool = False,
) -> Corpus:
    """Clean, deduplicate and tokenize `source` to `out`. A corpus that is there already is opened, if it was made in the same way.

    `source` is a folder, a file, or the name of a corpus that every machine has (`data.text.sources.NAMED`). The tokenizer is
    that of `tokenizer_from` (a corpus, a Hugging Face directory or a GGUF file); without it, one of `vocab_size` tokens is
    trained. After an error nothing is left at `out`. Memory is bounded, except for about 60 bytes per document; while it runs,
    the disk needs room for the clean text beside the tokens. Raises TenfoldError if `out` holds another corpus, if no usable text
    is found, or if the disk is full.
    """
    if tokenizer_from is None and vocab_size < SMALLEST_VOCABULARY:
        raise TenfoldError(f"A byte-level vocabulary needs at least {SMALLEST_VOCABULARY} tokens, not {vocab_size}.")
    tokenizer = vocab_size if tokenizer_from is None else _usable(tokenizer_from)
    chosen(options.filters)
    check_columns(source, options.text_column)
    if (out / "manifest.json").exists():
        return _existing(out, text_recipe(source, options, known_in(out.parent, out.name), quiet)[0] | {"tokenizer": tokenizer})
    began = time.perf_counter()
    with atomic_folder(out) as scratch:
        recipe, listing = text_recipe(source, options, {}, quiet)
        if tokenizer_from is not None:
            _copy_tokenizer(tokenizer_from, scratch)
        spooled = scratch / "spool"
        spooled.mkdir()
        with Spool(spooled) as spool:
            documents, report = clean(source, spool, options, quiet)
            if tokenizer_from is None:
                _train_tokenizer(str(source), sample(spool, documents["train"]), vocab_size, scratch)
            texts = {split: spool.texts(records) for split, records in documents.items()}
            facts = _tokenize(texts, report["kept_bytes"], scratch, quiet)
        shutil.rmtree(spooled)
        origin = {"source": where(source), "listing": listing, "recipe": recipe | {"tokenizer": tokenizer}}
        _write_manifest(scratch, {**origin, "cleaning": report, **facts}, began)
    return open_corpus(out)


def text_recipe(source: str | Path, options: TextOptions, known: Mapping[str, str], quiet: bool) -> tuple[dict[str, Any], str]:
    """The part of a corpus's recipe that describes its text, and the listing of the files (`data.fingerprint`)."""
    found = fingerprint(partial(files_in, source), known, quiet)
    return {"content": found.content} | options.recipe, found.listing


def retokenize(corpus: Corpus, out: Path, tokenizer_from: Path, *, quiet: bool = False) -> Corpus:
    """Write a corpus again to `out` with another tokenizer, in the same order and splits; if it is there already, it is opened."""
    recipe = retokenized_recipe(corpus, tokenizer_from)
    if (out / "manifest.json").exists():
        return _existing(out, recipe)
    began = time.perf_counter()
    with atomic_folder(out) as scratch:
        sizes = corpus.manifest["splits"]
        texts = {split: map(str.encode, map(partial(corpus.text, split), range(sizes[split]["documents"]))) for split in SPLITS}
        _copy_tokenizer(tokenizer_from, scratch)
        facts = _tokenize(texts, sum(sizes[split]["bytes"] for split in SPLITS), scratch, quiet)
        origin: dict[str, Any] = {key: corpus.manifest[key] for key in ("source", "listing", "cleaning") if key in corpus.manifest}
        _write_manifest(scratch, {**origin, "recipe": recipe, **facts}, began)
    return open_corpus(out)


def retokenized_recipe(corpus: Corpus, tokenizer_from: Path) -> dict[str, Any]:
    """The recipe of what `retokenize` makes. It equals that of `build` from the same text, if the corpus records its text."""
    text = corpus.manifest.get("recipe", {"content": corpus.fingerprint, "text_column": "text"})
    return text | {"tokenizer": _usable(tokenizer_from)}


def open_corpus(directory: Path, verify: bool = False) -> Corpus:
    """Open a corpus. The sizes of its files are checked, and with `verify` their checksums. Raises TenfoldError if it is
    damaged."""
    path = directory / "manifest.json"
    if not path.exists():
        raise TenfoldError(f"{directory} holds no corpus: make one with `tenfold data build`.")
    manifest = read_manifest(path.read_text(), directory)
    for name, facts in manifest["files"].items():
        problem = _damage(directory / name, facts, verify)
        if problem:
            raise TenfoldError(f"The shard {directory / name} {problem}: delete {directory} and build the corpus again.")
    return Corpus(directory, manifest)


def read_manifest(written: str | bytes, where: Path | str) -> dict[str, Any]:
    """Parse the manifest of the corpus at `where`; format 2 implies the vocabulary of `train_tokenizer`. Raises TenfoldError."""
    try:
        manifest = json.loads(written)
        number, _, size = manifest["format"], manifest["files"], manifest["vocab_size"]
    except (ValueError, KeyError, TypeError):
        raise TenfoldError(f"The manifest.json of {where} is damaged: delete {where} and build the corpus again.") from None
    require_version(number, (2, FORMAT), where, "delete it and build the corpus again")
    if number == 2:
        return manifest | {"vocabulary": msgspec.to_builtins(trained_vocabulary(size))}
    return manifest


def _damage(file: Path, facts: dict[str, Any], verify: bool) -> str:
    if not file.exists():
        return "is missing"
    if file.stat().st_size != facts["bytes"]:
        return f"is damaged (it has {file.stat().st_size} bytes and not {facts['bytes']})"
    if verify and _facts(file) != facts:
        return "is damaged (its checksum differs)"
    return ""


def require_tokens(corpus: Corpus, needed: float, max_epochs: float) -> float:
    """The number of epochs in which the corpus gives `needed` tokens. Raises TenfoldError if it is more than `max_epochs`."""
    epochs = needed / max(1, corpus.train_tokens)
    if epochs > max_epochs:
        missing = (needed / max_epochs - corpus.train_tokens) / max(1, corpus.train_tokens)
        size = missing * corpus.manifest["splits"]["train"]["bytes"]
        raise TenfoldError(
            f"The corpus has {si(corpus.train_tokens, 'tokens')} and the run needs {si(needed, 'tokens')}, which is "
            f"{epochs:.1f} readings where {max_epochs:g} are allowed: add {si(size, 'B')} of text or ask for less compute."
        )
    return epochs


_OTHER = {
    "content": "other text",
    "text_column": "another column of it",
    "html": "HTML that was read otherwise",
    "markdown": "Markdown that was read otherwise",
    "filters": "other filters",
    "dedup": "other rules for copies",
    "tokenizer": "another tokenizer or vocabulary size",
}


def _existing(out: Path, recipe: Mapping[str, Any]) -> Corpus:
    corpus = open_corpus(out)
    made = corpus.manifest.get("recipe", {})
    if other := [name for key, name in _OTHER.items() if made.get(key) != recipe.get(key)]:
        raise TenfoldError(f"{out} holds a corpus of {', '.join(other)}: choose another folder, or delete it.")
    return corpus


def _usable(tokenizer_from: Path) -> str:
    """The hash of a tokenizer. Raises TenfoldError for one that a corpus cannot be made with."""
    _ = read_vocabulary(tokenizer_from).document_end, token_bytes(read_tokenizer(tokenizer_from))
    return tokenizer_hash(tokenizer_from)


def _copy_tokenizer(source: Path, scratch: Path) -> None:
    copy_tokenizer(source, scratch)
    np.save(scratch / "token_bytes.npy", token_bytes(read_tokenizer(source)))


def _train_tokenizer(source: str, texts: Iterable[str], vocab_size: int, scratch: Path) -> None:
    tokenizer = train_tokenizer(texts, vocab_size)
    if (found := tokenizer.get_vocab_size()) < vocab_size:
        raise TenfoldError(
            f"The corpus {source!r} is too small for a vocabulary of {vocab_size}: only {found} tokens were found; add text or "
            "ask for fewer."
        )
    save_tokenizer(tokenizer, trained_vocabulary(vocab_size), scratch)
    np.save(scratch / "token_bytes.npy", token_bytes(tokenizer))


def _tokenize(texts: Mapping[str, Iterable[bytes]], size: int, scratch: Path, quiet: bool) -> dict[str, Any]:
    """Tokenize `texts`, `size` bytes in all, with the tokenizer in `scratch`; returns their part of the manifest."""
    vocabulary, encode = read_vocabulary(scratch), TextEncoder(read_tokenizer(scratch))
    dtype = "uint16" if vocabulary.size <= 2**16 else "uint32"
    files = {file.name: _facts(file) for file in sorted(scratch.iterdir()) if file.is_file()}
    sizes: dict[str, dict[str, int]] = {}
    began, done, rate = time.perf_counter(), 0, 0.0
    with progress_bar(quiet) as bar:
        task = bar.add_task("tokenizing", total=size, speed="")
        for split in texts:
            before = done
            with ShardWriter(scratch, split, dtype, SHARD_TOKENS) as writer:
                for group in _groups(texts[split]):
                    for ids in encode([text.decode("utf-8") for text in group]):
                        writer.write(np.array([*vocabulary.begin, *ids, vocabulary.document_end], dtype))
                    done += sum(map(len, group))
                    rate = done / 1e6 / (time.perf_counter() - began)
                    bar.update(task, completed=done, speed=f"{rate:.1f} MB/s")
            sizes[split] = {"documents": writer.documents, "tokens": writer.tokens, "bytes": done - before}
            files |= writer.files
    return {
        "vocab_size": vocabulary.size,
        "vocabulary": msgspec.to_builtins(vocabulary),
        "dtype": dtype,
        "shard_tokens": SHARD_TOKENS,
        "splits": sizes,
        "tokenize_mb_per_s": rate,
        "files": files,
    }


def _write_manifest(scratch: Path, facts: dict[str, Any], began: float) -> None:
    manifest = {"format": FORMAT, **facts, "seconds": time.perf_counter() - began}
    write_json(scratch / "manifest.json", manifest)


def _groups(texts: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Texts in groups of about `BATCH_BYTES`, so that all cores have work."""
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


def _facts(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
