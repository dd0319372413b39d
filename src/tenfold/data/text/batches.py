"""Batches as a pure function of (seed, step), independent of the process that reads them.

The tokens are one stream, cut into rows of `seq_len`. A row may hold parts of several documents: `document` numbers them, so that
attention stays within each. Every epoch goes through the rows in another order: a permutation that is computed for the rows asked
for (a small Feistel network) and never stored.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tenfold.data.text.corpus import Corpus
from tenfold.spec.errors import TenfoldError

ROUNDS = 4  # of the Feistel network


@dataclass(frozen=True)
class Batch:
    """`tokens` and `targets` int64 [rows, T], where target -100 is ignored; `document` int32 [rows, T].

    With images: `tiles` uint8 [tiles, 3, S, S] in the order of their patch tokens, and `tile_ends` int64 [rows], the number of
    tiles up to the end of each row. A slice of a batch with images keeps both, even if its rows have no tiles.
    """

    tokens: np.ndarray
    targets: np.ndarray
    document: np.ndarray
    tiles: np.ndarray | None = None
    tile_ends: np.ndarray | None = None

    def __getitem__(self, rows: slice) -> "Batch":
        """Consecutive rows (a slice without a step), with their tiles."""
        tokens, targets, document = self.tokens[rows], self.targets[rows], self.document[rows]
        if self.tiles is None or self.tile_ends is None:
            return Batch(tokens, targets, document)
        first, last, _ = rows.indices(len(self.tokens))
        begin, end = (int(self.tile_ends[row - 1]) if row else 0 for row in (first, max(first, last)))
        return Batch(tokens, targets, document, self.tiles[begin:end], self.tile_ends[rows] - begin)

    @property
    def target_count(self) -> int:
        """The number of targets that are not ignored."""
        return int((self.targets >= 0).sum())


def train_batch(corpus: Corpus, step: int, rows: slice = slice(None), *, batch_size: int, seq_len: int, seed: int) -> Batch:
    """`rows` of the `batch_size` rows of a step; no other row is read.

    The number of targets in the whole batch is the sum of `target_count` over all processes. Raises TenfoldError if the corpus is
    shorter than one row.
    """
    sample = np.arange(batch_size, dtype=np.int64)[rows] + step * batch_size
    return text_rows(corpus, "train", shuffled(sample, row_count(corpus, "train", seq_len), seed), seq_len)


def shuffled(sample: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """The row number, below `rows`, of each sample (counted from the start of the run): every epoch has all rows, in another
    order."""
    index = np.empty_like(sample)
    for epoch in np.unique(sample // rows):
        inside = sample // rows == epoch
        index[inside] = permute(sample[inside] % rows, rows, seed, int(epoch))
    return index


def validation_batches(
    corpus: Corpus, *, batch_size: int, seq_len: int, limit_tokens: int | None = None, part: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """The validation rows once, in order; with `limit_tokens`, as many as fit in it, evenly spread over all.

    With `part = (index, parts)` only this part of them. All parts yield the same number of batches of the same sizes, because a
    model that is sharded over processes must run equally often on each; a part with a row less gets one without targets.
    """
    count = row_count(corpus, "validation", seq_len)
    index = np.arange(count)
    if limit_tokens is not None and limit_tokens < count * seq_len:
        index = np.linspace(0, count, max(1, limit_tokens // seq_len), endpoint=False).astype(np.int64)
    mine, own = share_of(len(index), part)
    for start in range(0, len(mine), batch_size):
        some = slice(start, start + batch_size)
        yield without_targets(text_rows(corpus, "validation", index[mine[some]], seq_len), ~own[some])


def validation_bytes(corpus: Corpus, *, seq_len: int, limit_tokens: int | None = None, part: tuple[int, int] = (0, 1)) -> int:
    """The bytes of text in the targets of `validation_batches`: the denominator of bits per byte."""
    return sum(
        int(corpus.token_bytes[batch.targets[batch.targets >= 0]].sum())
        for batch in validation_batches(corpus, batch_size=256, seq_len=seq_len, limit_tokens=limit_tokens, part=part)
    )


def share_of(count: int, part: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers below `count` in a part (index, parts), the same number of them for all parts, and whether each counts, bool: the
    last one may be a repeat that pads the part."""
    index, parts = part
    mine = np.arange(index, index + -(-count // parts) * parts, parts)
    return mine % count, mine < count


def without_targets(batch: Batch, rows: np.ndarray) -> Batch:
    """The batch with the targets in `rows` (bool [rows]) set to -100."""
    return replace(batch, targets=np.where(rows[:, None], -100, batch.targets)) if rows.any() else batch


def row_count(corpus: Corpus, split: str, seq_len: int) -> int:
    """The number of whole rows of `seq_len` inputs with their targets. Raises TenfoldError if there is none."""
    rows = (len(corpus.tokens(split)) - 1) // seq_len
    if rows < 1:
        raise TenfoldError(f"The {split} text is shorter than one sequence of {seq_len} tokens: add text.")
    return rows


def text_rows(corpus: Corpus, split: str, index: np.ndarray, seq_len: int) -> Batch:
    """The rows of a split numbered `index` (int [rows])."""
    stream = corpus.tokens(split)
    window = stream[index[:, None] * seq_len + np.arange(seq_len + 1)].astype(np.int64)
    tokens, targets = window[:, :-1], window[:, 1:].copy()
    ends = tokens == corpus.vocabulary.document_end
    targets[ends] = -100
    document = np.cumsum(ends, axis=1, dtype=np.int32) - ends
    return Batch(np.ascontiguousarray(tokens), targets, document.astype(np.int32))


def permute(index: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """A pseudo-random permutation of 0 ... size - 1 for (seed, epoch), applied to `index`.

    A Feistel network on the next even number of bits; results of `size` or more are permuted again (cycle walking).
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
