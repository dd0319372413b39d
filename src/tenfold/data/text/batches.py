"""Batches as a pure function of (seed, step), whoever reads them.

The tokens are one stream cut into rows of `seq_len`. A row may hold parts of several documents: `document` numbers
them, so that attention stays within each. Every epoch goes through the rows in another order, a permutation that is
computed where it is needed (a small Feistel network) and takes no memory.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tenfold.data.text.corpus import Corpus
from tenfold.spec.errors import TenfoldError

END_TOKEN = 1
ROUNDS = 4


@dataclass(frozen=True)
class Batch:
    """`tokens` and `targets` int64 [rows, T], with target -100 where there is none; `document` int32 [rows, T].

    With images: `tiles` uint8 [tiles, 3, S, S] in the order of their patch tokens, and `tile_ends` int64 [rows], the
    tiles up to the end of each row.
    """

    tokens: np.ndarray
    targets: np.ndarray
    document: np.ndarray
    tiles: np.ndarray | None = None
    tile_ends: np.ndarray | None = None


def train_batch(
    corpus: Corpus, step: int, *, batch_size: int, seq_len: int, seed: int, rank: int = 0, world: int = 1
) -> Batch:
    """The rows of `step` that belong to `rank` of `world`: an equal, contiguous part of the `batch_size` rows.

    Raises TenfoldError where the batch does not divide or the corpus has no whole row.
    """
    if batch_size % world:
        raise TenfoldError(f"A batch of {batch_size} sequences cannot be shared equally by {world} processes.")
    mine = batch_size // world
    sample = np.arange(mine, dtype=np.int64) + step * batch_size + rank * mine
    return text_rows(corpus, "train", shuffled(sample, row_count(corpus, "train", seq_len), seed), seq_len)


def shuffled(sample: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """Which of `rows` rows each sample (counted from the run's first) is: every epoch all of them, in another order."""
    index = np.empty_like(sample)
    for epoch in np.unique(sample // rows):
        inside = sample // rows == epoch
        index[inside] = permute(sample[inside] % rows, rows, seed, int(epoch))
    return index


def validation_batches(
    corpus: Corpus, *, batch_size: int, seq_len: int, limit_tokens: int | None = None
) -> Iterator[Batch]:
    """All validation rows once, in order; with `limit_tokens` as many as it allows, evenly spread over all."""
    rows = row_count(corpus, "validation", seq_len)
    index = np.arange(rows)
    if limit_tokens is not None and limit_tokens < rows * seq_len:
        index = np.linspace(0, rows, max(1, limit_tokens // seq_len), endpoint=False).astype(np.int64)
    for start in range(0, len(index), batch_size):
        yield text_rows(corpus, "validation", index[start : start + batch_size], seq_len)


def validation_bytes(corpus: Corpus, *, seq_len: int, limit_tokens: int | None = None) -> int:
    """Bytes of text that the targets of `validation_batches` stand for: the denominator of bits per byte."""
    return sum(
        int(corpus.token_bytes[batch.targets[batch.targets >= 0]].sum())
        for batch in validation_batches(corpus, batch_size=256, seq_len=seq_len, limit_tokens=limit_tokens)
    )


def row_count(corpus: Corpus, split: str, seq_len: int) -> int:
    """Whole rows of `seq_len` inputs and their targets. Raises TenfoldError where there is none."""
    rows = (len(corpus.tokens(split)) - 1) // seq_len
    if rows < 1:
        raise TenfoldError(f"The {split} text is shorter than one sequence of {seq_len} tokens: add text.")
    return rows


def text_rows(corpus: Corpus, split: str, index: np.ndarray, seq_len: int) -> Batch:
    """The rows of text numbered `index`."""
    stream = corpus.tokens(split)
    window = stream[index[:, None] * seq_len + np.arange(seq_len + 1)].astype(np.int64)
    tokens, targets = window[:, :-1], window[:, 1:].copy()
    ends = tokens == END_TOKEN
    targets[ends] = -100
    document = np.cumsum(ends, axis=1, dtype=np.int32) - ends
    return Batch(np.ascontiguousarray(tokens), targets, document.astype(np.int32))


def permute(index: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """A pseudo-random permutation of 0 ... size - 1 for (seed, epoch), applied to `index`.

    A Feistel network on the next even number of bits; what falls outside is sent through again (cycle walking).
    """
    half = max(1, (max(1, size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = np.frombuffer(hashlib.sha256(f"{seed}:{epoch}".encode()).digest()[: 8 * ROUNDS], dtype=np.uint64)
    out = index.astype(np.uint64)
    pending = np.ones(len(out), dtype=bool)
    while pending.any():
        left, right = out[pending] >> np.uint64(half), out[pending] & mask
        for key in keys:
            mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        out[pending] = (left << np.uint64(half)) | right
        pending &= out >= size
    return out.astype(np.int64)
