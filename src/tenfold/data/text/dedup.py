"""Copies and near copies, found with 24 bytes of memory a document; the signatures stay on disk."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import regex
from rensa import RMinHash

from tenfold.data.text.filters import UNSPACED

PERMUTATIONS = 64
BANDS = 16
ROWS = PERMUTATIONS // BANDS
NEAR_COPY = 0.8
SHINGLE_WORDS = 5
_CHUNK = 2**16
_BASE = 0x9E3779B97F4A7C15 | 1
_INVERSE = pow(_BASE, -1, 2**64)
_IN_WORD, _WORD = 1, 2  # a character that is part of a word; a character that is a word by itself


def signature(text: bytes) -> np.ndarray:
    """MinHash of a text's word 5-grams, uint32 [PERMUTATIONS]: the share of equal places estimates the Jaccard similarity.

    A word is a run of letters, marks, digits and underscores; in scripts without spaces every character is one. Signatures
    are equal on every machine.
    """
    hashes = word_shingles(text)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, [0, len(hashes)], PERMUTATIONS, 1)
    return np.array(matrix.to_rows()[0], dtype=np.uint32)


def word_shingles(text: bytes, size: int = SHINGLE_WORDS) -> np.ndarray:
    """Hashes of all word n-grams of a text in UTF-8, uint64, repeated ones too; of all words where there are fewer."""
    if not text.isascii():
        return _shingles(_words(np.frombuffer(text.decode().encode("utf-32-le"), dtype=np.uint32)), size)
    return _shingles(_words(np.frombuffer(text, dtype=np.uint8)), size)


def copies(keys: np.ndarray) -> np.ndarray:
    """Which of the documents with these hashes are exact copies of an earlier one: bool [documents]."""
    copy = np.ones(len(keys), dtype=bool)
    copy[np.unique(keys, return_index=True)[1]] = False
    return copy


def near_copies(signatures: Path, candidates: np.ndarray) -> np.ndarray:
    """Which documents are near copies of one that is kept: bool [documents].

    `signatures` is a file of uint32 [documents, PERMUTATIONS], `candidates` bool [documents] says which count. Of those
    left, no two share a band and have an estimated Jaccard similarity of `NEAR_COPY`; the earlier one of two is kept.
    Bands are taken one after another, so that memory holds one 64-bit hash of each document and its order.
    """
    kept = candidates.copy()
    stored = np.memmap(signatures, np.uint32, "r").reshape(-1, PERMUTATIONS) if len(kept) else np.empty((0, PERMUTATIONS))
    for band in range(BANDS):
        hashes = _band(signatures, band, len(kept))
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        starts = np.flatnonzero(np.concatenate(([True], hashes[1:] != hashes[:-1])))
        ends = np.append(starts[1:], len(order))
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            same = order[start:end]
            _thin(same[kept[same]], stored, kept)
    return candidates & ~kept


def _thin(same: np.ndarray, stored: np.ndarray, kept: np.ndarray) -> None:
    """Of documents that share a band, keep those that are no near copy of an earlier kept one."""
    signatures = stored[same]
    while len(same) > 1:
        near = (signatures[1:] == signatures[0]).mean(axis=1) >= NEAR_COPY
        kept[same[1:][near]] = False
        same, signatures = same[1:][~near], signatures[1:][~near]


def _band(signatures: Path, band: int, documents: int) -> np.ndarray:
    """One hash for the places of a band, uint64 [documents], read in parts."""
    hashes = np.empty(documents, dtype=np.uint64)
    with signatures.open("rb") as stream:
        for start in range(0, documents, _CHUNK):
            part = np.fromfile(stream, np.uint32, min(_CHUNK, documents - start) * PERMUTATIONS)
            places = part.reshape(-1, PERMUTATIONS)[:, band * ROWS : (band + 1) * ROWS].astype(np.uint64)
            hashes[start : start + len(places)] = _combined(places)
    return hashes


def _combined(places: np.ndarray) -> np.ndarray:
    out = np.zeros(len(places), dtype=np.uint64)
    for column in places.T:
        out = _mixed((out ^ column) * np.uint64(_BASE))
    return out


def _words(characters: np.ndarray) -> np.ndarray:
    """A hash of each word, uint64: the differences of a running polynomial modulo 2^64, brought to the same power."""
    kinds = np.pad(_kinds()[characters], 1)
    # There is a boundary between two characters unless both are _IN_WORD.
    parted = (kinds[1:] != _IN_WORD) | (kinds[:-1] != _IN_WORD)
    starts, ends = np.flatnonzero(parted[:-1] & (kinds[1:-1] > 0)), np.flatnonzero(parted[1:] & (kinds[1:-1] > 0)) + 1
    running = np.zeros(len(characters) + 1, dtype=np.uint64)
    np.cumsum((characters.astype(np.uint64) + np.uint64(1)) * _powers(_BASE, len(characters)), out=running[1:])
    return _mixed((running[ends] - running[starts]) * _powers(_INVERSE, len(characters) + 1)[starts])


@cache
def _kinds() -> np.ndarray:
    """The kind of each character: 0 (no part of a word), `_IN_WORD` or `_WORD`, uint8 [characters of Unicode]."""
    everything = np.arange(sys.maxunicode + 1, dtype=np.uint32).tobytes().decode("utf-32-le", "surrogatepass")
    kinds = np.zeros(len(everything), dtype=np.uint8)
    for kind, characters in ((_IN_WORD, r"\w\p{M}"), (_WORD, UNSPACED)):
        for run in regex.finditer(f"[{characters}]+", everything):
            kinds[run.start() : run.end()] = kind
    return kinds


def _powers(base: int, count: int) -> np.ndarray:
    factors = np.full(count, base, dtype=np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors, out=factors)


def _shingles(words: np.ndarray, size: int) -> np.ndarray:
    """Hashes of all runs of `size` words; of all words where there are fewer."""
    size = min(size, len(words))
    out = np.zeros(len(words) - size + 1, dtype=np.uint64)
    for place in range(size):
        out = _mixed((out ^ words[place : place + len(out)]) * np.uint64(_BASE))
    return out


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finisher of SplitMix64 (Steele and others, 2014): every bit of the input reaches every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
