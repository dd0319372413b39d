"""Chats packed into rows of one length. Attention stays within each chat, so packing does not change what is learned."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from tenfold.data.conversations.tokens import EncodedChat
from tenfold.data.text.batches import Batch, share_of, shuffled, without_targets
from tenfold.spec.errors import TenfoldError

Piece = tuple[np.ndarray, np.ndarray]  # tokens and targets of a chat, int64 [n] each


@dataclass(frozen=True)
class PackedChats:
    """Rows of chats. The answers in them have `answer_bytes` of text; `answers` of them are learned up to their stop token.

    `cut` chats lost their end, and `left_out` had no answer that fits.
    """

    rows: Batch
    answer_bytes: int = 0
    cut: int = 0
    left_out: int = 0
    answers: int = 0

    def __len__(self) -> int:
        return len(self.rows.tokens)

    @property
    def fingerprint(self) -> str:
        """A hash of all rows."""
        return rows_hash(self.rows)

    def batch(self, step: int, rows: slice, *, batch_size: int, seed: int) -> Batch:
        """`rows` of the `batch_size` rows of a step, a pure function of (seed, step); every epoch has all rows in another order."""
        sample = np.arange(batch_size, dtype=np.int64)[rows] + step * batch_size
        return taken(self.rows, shuffled(sample, len(self), seed))

    def batches(self, batch_size: int, part: tuple[int, int]) -> Iterator[Batch]:
        """A `part` (index, parts) of the rows once, in order; all parts yield batches of the same sizes."""
        mine, own = share_of(len(self), part)
        for start in range(0, len(mine), batch_size):
            some = slice(start, start + batch_size)
            yield without_targets(taken(self.rows, mine[some]), ~own[some])


def pack(chats: Sequence[EncodedChat], seq_len: int, fill: int = 0) -> PackedChats:
    """Pack chats into rows of `seq_len` tokens by first-fit decreasing; `fill` is the padding token.

    A chat that is too long loses its end: what is left of a cut answer is learned, but no stop token. Raises TenfoldError if no
    answer fits.
    """
    pieces = [piece(chat, seq_len) for chat in chats]
    fitting = [i for i in range(len(chats)) if learns(pieces[i])]
    if not fitting:
        raise TenfoldError(f"No chat has an answer within {seq_len} tokens: raise seq_len.")
    packed = first_fit([[len(pieces[i][0])] for i in fitting], seq_len)
    rows = lay([[pieces[fitting[i]] for i in row] for row in packed], seq_len, fill)
    cut = sum(len(chats[i].tokens) > seq_len + 1 for i in fitting)
    answers = sum(chats[i].answers(seq_len + 1) for i in fitting)
    return PackedChats(rows, sum(chats[i].answer_bytes for i in fitting), cut, len(chats) - len(fitting), answers)


def first_fit(sizes: Sequence[Sequence[int]], capacity: int) -> list[list[int]]:
    """First-fit decreasing: the numbers of the items in each row. The longest items are placed first, each in the first row with
    room for all its `sizes`; an item may have several sizes, each with a `capacity` of its own in every row."""
    packed: list[list[int]] = []
    room: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: -max(sizes[i])):
        row = next((r for r, free in enumerate(room) if all(f >= s for f, s in zip(free, sizes[i], strict=True))), len(packed))
        if row == len(packed):
            packed.append([])
            room.append([capacity] * len(sizes[i]))
        packed[row].append(i)
        room[row] = [f - s for f, s in zip(room[row], sizes[i], strict=True)]
    return packed


def lay(documents: Sequence[Sequence[Piece]], seq_len: int, fill: int) -> Batch:
    """One row for each list of documents, which follow one another and are numbered from 0; padding has the number -1."""
    shape = len(documents), seq_len
    rows = Batch(np.full(shape, fill, np.int64), np.full(shape, -100, np.int64), np.full(shape, -1, np.int32))
    for r, members in enumerate(documents):
        at = 0
        for number, (tokens, targets) in enumerate(members):
            place = slice(at, at + len(tokens))
            rows.tokens[r, place], rows.targets[r, place], rows.document[r, place] = tokens, targets, number
            at += len(tokens)
    return rows


def rows_hash(*batches: Batch) -> str:
    """A hash of the tokens, targets and document numbers."""
    parts = (part for batch in batches for part in (batch.tokens, batch.targets, batch.document))
    return sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


def taken(rows: Batch, index: np.ndarray) -> Batch:
    """The rows numbered `index`."""
    return Batch(rows.tokens[index], rows.targets[index], rows.document[index])


def piece(chat: EncodedChat, seq_len: int) -> Piece:
    """The input tokens and the targets of a chat, at most `seq_len` of each."""
    targets = np.where(chat.learned, chat.tokens, -100)[1:]
    return chat.tokens[:-1][:seq_len], targets[:seq_len]


def learns(document: Piece) -> bool:
    """Whether a document has a target that is not ignored."""
    return bool((document[1] >= 0).any())
