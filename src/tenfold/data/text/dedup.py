"""Find copies and near copies, with about 24 bytes of memory per document; the MinHash signatures stay on disk."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import regex
from rensa import RMinHash

from tenfold.data.text.filters import UNSPACED

PERMUTATIONS = 64  # values in a MinHash signature
BANDS = 16  # groups of ROWS values: documents with an equal band are compared
ROWS = PERMUTATIONS // BANDS
NEAR_COPY = 0.8  # estimated Jaccard similarity from which a document is a near copy
SHINGLE_WORDS = 5
_CHUNK = 2**16  # signatures that are read at a time
_BASE = 0x9E3779B97F4A7C15 | 1
_INVERSE = pow(_BASE, -1, 2**64)
_IN_WORD, _WORD = 1, 2  # a character that is part of a word; a character that is a word by itself


def signature(text: bytes) -> np.ndarray:
    """The MinHash of a text's word 5-grams, uint32 [PERMUTATIONS]. The share of equal values in two signatures estimates the
    Jaccard similarity of the texts.

    A word is a run of letters, marks, digits and underscores; in scripts without spaces every character is a word. Signatures are
    the same on every machine.
    """
    hashes = word_shingles(text)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, [0, len(hashes)], PERMUTATIONS, 1)
    return np.array(matrix.to_rows()[0], dtype=np.uint32)


def word_shingles(text: bytes, size: int = SHINGLE_WORDS) -> np.ndarray:
    """A hash of every n-gram of `size` words in a UTF-8 text, uint64; of a shorter text, one hash of all its words."""
    if not text.isascii():
        return _shingles(_words(np.frombuffer(text.decode().encode("utf-32-le"), dtype=np.uint32)), size)
    return _shingles(_words(np.frombuffer(text, dtype=np.uint8)), size)


def copies(keys: np.ndarray) -> np.ndarray:
    """Which documents are exact copies of an earlier one, by their hashes `keys`: bool [documents]."""
    copy = np.ones(len(keys), dtype=bool)
    copy[np.unique(keys, return_index=True)[1]] = False
    return copy


def near_copies(signatures: Path, candidates: np.ndarray) -> np.ndarray:
    """Which documents are near copies of one that is kept: bool [documents].

    `signatures` is a file of uint32 [documents, PERMUTATIONS]; documents where `candidates` (bool [documents]) is False are
    ignored. Among the documents kept, no two share a band and have an estimated Jaccard similarity of `NEAR_COPY` or more; of two
    that would, the earlier is kept. The bands are processed one after another, so that memory holds only a hash and an index per
    document.
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
    """Of the documents `same`, which share a band, unset `kept` for near copies of an earlier kept one."""
    signatures = stored[same]
    while len(same) > 1:
        near = (signatures[1:] == signatures[0]).mean(axis=1) >= NEAR_COPY
        kept[same[1:][near]] = False
        same, signatures = same[1:][~near], signatures[1:][~near]


def _band(signatures: Path, band: int, documents: int) -> np.ndarray:
    """A hash of each document's values in a band, uint64 [documents]. The file is read in chunks."""
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
    """A hash of each word, uint64: a polynomial modulo 2^64, from the differences of a running sum scaled to the same power."""
    kinds = np.pad(_kinds()[characters], 1)
    # Between two characters is a boundary unless both are _IN_WORD.
    parted = (kinds[1:] != _IN_WORD) | (kinds[:-1] != _IN_WORD)
    starts, ends = np.flatnonzero(parted[:-1] & (kinds[1:-1] > 0)), np.flatnonzero(parted[1:] & (kinds[1:-1] > 0)) + 1
    running = np.zeros(len(characters) + 1, dtype=np.uint64)
    np.cumsum((characters.astype(np.uint64) + np.uint64(1)) * _powers(_BASE, len(characters)), out=running[1:])
    return _mixed((running[ends] - running[starts]) * _powers(_INVERSE, len(characters) + 1)[starts])


@cache
def _kinds() -> np.ndarray:
    """The kind of each Unicode character: 0 (not part of a word), `_IN_WORD` or `_WORD`; uint8 [characters]."""
    everything = np.arange(sys.maxunicode + 1, dtype=np.uint32).tobytes().decode("utf-32-le", "surrogatepass")
    kinds = np.zeros(len(everything), dtype=np.uint8)
    for kind, characters in ((_IN_WORD, r"\w\p{M}"), (_WORD, UNSPACED)):
        for run in regex.finditer(f"[{characters}]+", everything):
            kinds[run.start() : run.end()] = kind
    return kinds


def _powers(base: int, count: int) -> np.ndarray:
    """The powers 0 to count - 1 of `base` modulo 2^64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors, out=factors)


def _shingles(words: np.ndarray, size: int) -> np.ndarray:
    """A hash of every run of `size` words; of all words if there are fewer."""
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
