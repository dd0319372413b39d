"""A corpus of images and their words on disk, and batches that mix its rows with rows of text.

    manifest.json  tokenizer.json  tokenizer_config.json  generation_config.json  tokens.bin  tiles.bin  documents.npy

A document is the tokens of an image and then those of its words, with the same begin and end tokens as documents of text; only the
words are training targets. Rows hold whole documents: an image is never cut.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from tenfold.data.fingerprint import digest, fingerprint, folder_of, known_in
from tenfold.data.images.tiles import cut, image_files, image_text, read_images
from tenfold.data.text.batches import (
    Batch,
    permute,
    row_count,
    share_of,
    shuffled,
    text_rows,
    train_batch,
    without_targets,
)
from tenfold.data.text.corpus import Corpus
from tenfold.data.text.encode import TextEncoder
from tenfold.model.io.tokenizer import save_tokenizer, tokenizer_hash
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import atomic_folder, write_json
from tenfold.spec.terminal import console
from tenfold.spec.versions import require_version
from tenfold.spec.vision import IMAGE_TOKENS, VisionSpec
from tenfold.spec.vocabulary import Vocabulary

FORMAT = 2  # of manifest.json
READER = 2  # version of the code that reads pixels and words; images that another version prepared are prepared again
VALIDATION_SHARE = 0.03
DOCUMENT = np.dtype([("tokens", "i8"), ("tiles", "i8"), ("words", "i4"), ("bytes", "i4"), ("validation", "?")])


@dataclass(frozen=True)
class ImageCorpus:
    """A corpus of images on disk. `documents` (DOCUMENT) has for each document the end of its tokens and of its tiles, the number
    of its last tokens that are its words (with the end token), their bytes of text, and whether it is for validation."""

    directory: Path
    manifest: dict[str, Any]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the text corpus, with `IMAGE_TOKENS` added."""
        return msgspec.convert(self.manifest["vocabulary"], Vocabulary)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the images and of how they were prepared."""
        return digest(self.manifest["recipe"])

    @cached_property
    def documents(self) -> np.ndarray:
        return np.load(self.directory / "documents.npy")

    @cached_property
    def tokens(self) -> np.ndarray:
        return np.memmap(self.directory / "tokens.bin", np.uint32, "r")

    @cached_property
    def tiles(self) -> np.ndarray:
        size = self.manifest["image_size"]
        return np.memmap(self.directory / "tiles.bin", np.uint8, "r").reshape(-1, 3, size, size)

    def packed(self, split: str, seq_len: int) -> list[list[int]]:
        """For each row of `seq_len` tokens, the numbers of its documents from `train` or `validation`, in random order, since
        neighbours in a folder are often alike.

        Raises TenfoldError if a document is longer than a row.
        """
        if (split, seq_len) not in self._packed:
            self._packed[split, seq_len] = self._pack(split, seq_len)
        return self._packed[split, seq_len]

    @cached_property
    def _packed(self) -> dict[tuple[str, int], list[list[int]]]:
        return {}

    def _pack(self, split: str, seq_len: int) -> list[list[int]]:
        rows: list[list[int]] = []
        room = 0
        lengths = np.diff(self.documents["tokens"], prepend=0)
        chosen = np.flatnonzero(self.documents["validation"] == (split == "validation"))
        for number in chosen[permute(np.arange(len(chosen)), len(chosen), 0, 0)]:
            length = int(lengths[number])
            if length > seq_len + 1:
                raise TenfoldError(
                    f"Image {number + 1} of {self.manifest['source']} and its words are {length} tokens, and a row has "
                    f"{seq_len}: ask for a longer seq_len or a smaller image_size."
                )
            if length > room:
                rows.append([])
                room = seq_len + 1
            rows[-1].append(int(number))
            room -= length
        return rows


def build_images(source: Path, out: Path, corpus: Corpus, vision: VisionSpec, max_tiles: int = 1) -> ImageCorpus:
    """Cut the images of `source` into tiles and tokenize their words, with the tokenizer of `corpus`, to `out`.

    If `out` holds the same images already, they are opened. Images that cannot be used are left out and named in `manifest.json`.
    After an error nothing is left at `out`. Raises TenfoldError for fewer than two usable images, or if `out` holds others.
    """
    recipe, listing = _recipe(source, known_in(out.parent, out.name), corpus, vision, max_tiles)
    if (out / "manifest.json").exists():
        return _existing(out, recipe)
    tokenizer = with_image_tokens(corpus.tokenizer)
    vocabulary = _with_image_tokens(corpus.vocabulary, tokenizer)
    with atomic_folder(out) as scratch:
        save_tokenizer(tokenizer, vocabulary, scratch)
        dropped: list[str] = []
        documents = _write(_cut(source, vision, max_tiles, dropped), scratch, tokenizer, vocabulary)
        if len(documents) < 2:
            raise TenfoldError(
                f"{source} has {len(documents)} usable images: at least two are needed, one of them for validation."
                + "".join(f" {problem}" for problem in dropped[:1])
            )
        if dropped:
            console(stderr=True).print(f"{len(dropped)} of {len(documents) + len(dropped)} images are left out: {dropped[0]}")
        np.save(scratch / "documents.npy", documents)
        origin = {"source": str(source.resolve()), "listing": listing, "recipe": recipe}
        facts = {"image_size": vision.image_size, "vocabulary": msgspec.to_builtins(vocabulary), "images": len(documents)}
        facts["dropped"] = dropped
        write_json(scratch / "manifest.json", {"format": FORMAT, **origin, **facts})
    return _existing(out, recipe)


def images_in(home: Path, source: Path, corpus: Corpus, vision: VisionSpec) -> ImageCorpus:
    """The images of `source`, prepared once in a folder of `home` and found again by their content."""
    name = f"images-{source.resolve().stem}-{vision.image_size}-{vision.tokens_per_tile}"
    recipe, _ = _recipe(source, known_in(home, name), corpus, vision)
    return build_images(source, folder_of(home, name, recipe), corpus, vision)


def _recipe(
    source: Path, known: Mapping[str, str], corpus: Corpus, vision: VisionSpec, max_tiles: int = 1
) -> tuple[dict[str, Any], str]:
    """The recipe of prepared images: all that they depend on; and the listing of their files."""
    found = fingerprint(partial(image_files, source), known, quiet=False)
    recipe = {
        "reader": READER,
        "content": found.content,
        "image_size": vision.image_size,
        "tokens_per_tile": vision.tokens_per_tile,
        "max_tiles": max_tiles,
        "tokenizer": tokenizer_hash(corpus.directory),
    }
    return recipe, found.listing


def _existing(out: Path, recipe: Mapping[str, Any]) -> ImageCorpus:
    manifest = json.loads((out / "manifest.json").read_text())
    require_version(manifest.get("format", 1), (FORMAT,), out, "delete it, and run the command again to prepare the images")
    if manifest.get("recipe") != recipe:
        raise TenfoldError(f"{out} holds other images, or ones that were prepared otherwise: delete it, or choose another folder.")
    return ImageCorpus(out, manifest)


def with_image_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """A copy of the tokenizer with `IMAGE_TOKENS`; those that it does not have are added after all others."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.add_special_tokens(list(IMAGE_TOKENS))
    return copy


def _with_image_tokens(vocabulary: Vocabulary, tokenizer: Tokenizer) -> Vocabulary:
    special = vocabulary.special | {token: tokenizer.token_to_id(token) for token in IMAGE_TOKENS}
    return msgspec.structs.replace(vocabulary, size=max(tokenizer.get_vocab().values()) + 1, special=special)


def _cut(source: Path, vision: VisionSpec, max_tiles: int, dropped: list[str]) -> Iterator[tuple[np.ndarray, str, str]]:
    """For each image: its tiles, the text that stands for them, and its words. Problems of other images are appended to
    `dropped`."""
    for image, words, problem in read_images(source):
        if image is None:
            dropped.append(problem)
            continue
        tiles, rows, columns = cut(image, vision.image_size, max_tiles)
        yield tiles, image_text(rows, columns, vision.tokens_per_tile), words


def _write(
    images: Iterable[tuple[np.ndarray, str, str]], scratch: Path, tokenizer: Tokenizer, vocabulary: Vocabulary
) -> np.ndarray:
    records: list[tuple[int, int, int, int, bool]] = []
    token_end = tile_end = 0
    encode = TextEncoder(tokenizer)  # encodes the names of special tokens in the words as plain text
    keys: list[int] = []
    with (scratch / "tokens.bin").open("wb") as token_file, (scratch / "tiles.bin").open("wb") as tile_file:
        for tiles, image, words in images:
            seen = [*vocabulary.begin, *tokenizer.encode(image, add_special_tokens=False).ids]
            said = [*encode([words])[0], vocabulary.document_end]
            token_file.write(np.array([*seen, *said], np.uint32).tobytes())
            tile_file.write(tiles.tobytes())
            token_end, tile_end = token_end + len(seen) + len(said), tile_end + len(tiles)
            keys.append(int.from_bytes(hashlib.sha256(tiles.tobytes() + words.encode()).digest()[:8], "big"))
            records.append((token_end, tile_end, len(said), len(words.encode()), False))
    documents = np.array(records, DOCUMENT)
    documents["validation"][np.argsort(keys)[: max(1, round(VALIDATION_SHARE * len(keys)))]] = True
    return documents


@dataclass(frozen=True)
class ImagesAmongText:
    """Batches in which `share` of all rows have images, spread evenly among rows of text."""

    corpus: Corpus
    images: ImageCorpus
    share: float

    def batch(self, step: int, rows: slice = slice(None), *, batch_size: int, seq_len: int, seed: int) -> Batch:
        """`rows` of the `batch_size` rows of a step, as `data.text.batches.train_batch` for text alone."""
        sample = np.arange(batch_size, dtype=np.int64) + step * batch_size
        before = np.floor(sample * self.share).astype(np.int64)
        shown = np.floor((sample + 1) * self.share).astype(np.int64) > before
        if not shown.any():
            return train_batch(self.corpus, step, rows, batch_size=batch_size, seq_len=seq_len, seed=seed)
        sample, before, shown = sample[rows], before[rows], shown[rows]
        packed = self.images.packed("train", seq_len)
        seeing = image_rows(self.images, [packed[i] for i in shuffled(before[shown], len(packed), seed)], seq_len)
        if shown.all():
            return seeing
        index = shuffled((sample - before)[~shown], row_count(self.corpus, "train", seq_len), seed)
        return _merged(seeing, text_rows(self.corpus, "train", index, seq_len), shown)


def _merged(seeing: Batch, text: Batch, shown: np.ndarray) -> Batch:
    """One batch: the rows of `seeing` where `shown` is True, and the rows of `text` elsewhere, each in its own order."""
    order = np.argsort(np.concatenate((np.flatnonzero(shown), np.flatnonzero(~shown))))
    assert seeing.tile_ends is not None
    counts = np.zeros(len(shown), np.int64)
    counts[shown] = np.diff(seeing.tile_ends, prepend=0)
    return Batch(
        np.concatenate((seeing.tokens, text.tokens))[order],
        np.concatenate((seeing.targets, text.targets))[order],
        np.concatenate((seeing.document, text.document))[order],
        seeing.tiles,
        counts.cumsum(),
    )


def image_batches(
    images: ImageCorpus, *, batch_size: int, seq_len: int, split: str = "validation", part: tuple[int, int] = (0, 1),
    shuffled: bool = False,
) -> Iterator[Batch]:  # fmt: skip
    """The rows of a split once, in order, or a `part` of them, as in `data.text.batches.validation_batches`.

    With `shuffled`, each tile is replaced by the tile before it in the whole split, so that words go with the wrong image.
    """
    packed = images.packed(split, seq_len)
    tile_numbers = _previous_tiles(images, packed) if shuffled else np.arange(len(images.tiles))
    mine, own = share_of(len(packed), part)
    for start in range(0, len(mine), batch_size):
        some = slice(start, start + batch_size)
        yield without_targets(image_rows(images, [packed[i] for i in mine[some]], seq_len, tile_numbers), ~own[some])


def _previous_tiles(images: ImageCorpus, packed: list[list[int]]) -> np.ndarray:
    """For each tile of the documents in `packed`: the number of the tile before it; for the first one, that of the last."""
    ends = images.documents["tiles"]
    order = np.concatenate([np.arange(_begin(images, n, "tiles"), ends[n]) for row in packed for n in row])
    numbers = np.arange(len(images.tiles))
    numbers[order] = np.roll(order, 1)
    return numbers


def image_rows(images: ImageCorpus, packed: list[list[int]], seq_len: int, tile_numbers: np.ndarray | None = None) -> Batch:
    """Rows of the documents numbered in `packed`, padded with end tokens that are no targets.

    `tile_numbers[i]`, if given, is the number of the tile that is shown in place of tile i.
    """
    shape = len(packed), seq_len + 1
    tokens = np.full(shape, images.vocabulary.document_end, np.int64)
    learned, document = np.zeros(shape, bool), np.zeros(shape, np.int32)
    tiles, counts = [], []
    for row, numbers in enumerate(packed):
        place = 0
        for i, number in enumerate(numbers):
            first, (last, _, words, _, _) = _begin(images, number, "tokens"), images.documents[number]
            ends = place + int(last) - first
            tokens[row, place:ends] = images.tokens[first:last]
            learned[row, ends - words : ends] = True
            document[row, place:ends] = i
            own = slice(_begin(images, number, "tiles"), images.documents["tiles"][number])
            tiles.append(images.tiles[own if tile_numbers is None else tile_numbers[own]])
            place = ends
        document[row, place:] = len(numbers)
        counts.append(sum(map(len, tiles[len(tiles) - len(numbers) :])))
    return Batch(
        np.ascontiguousarray(tokens[:, :-1]),
        np.where(learned, tokens, -100)[:, 1:],
        np.ascontiguousarray(document[:, :-1]),
        np.concatenate((images.tiles[:0], *tiles)),
        np.cumsum(counts, dtype=np.int64),
    )


def _begin(images: ImageCorpus, number: int, field: str) -> int:
    return int(images.documents[field][number - 1]) if number else 0
