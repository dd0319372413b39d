"""Chats packed into rows of one length. Attention stays within each chat, so a packed chat is learned as one alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from tenfold.data.conversations.tokens import EncodedChat
from tenfold.data.text.batches import Batch, share_of, shuffled, without_targets
from tenfold.spec.errors import TenfoldError


@dataclass(frozen=True)
class PackedChats:
    """Rows of chats; `answer_bytes` of text are learned, `cut` chats lost their end, and `left_out` had no answer that fits."""

    rows: Batch
    answer_bytes: int = 0
    cut: int = 0
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.rows.tokens)

    @property
    def fingerprint(self) -> str:
        """A hash of all rows."""
        parts = (self.rows.tokens, self.rows.targets, self.rows.document)
        return sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]

    def batch(self, step: int, rows: slice, *, batch_size: int, seed: int) -> Batch:
        """`rows` of the `batch_size` rows of a step: every epoch all rows, in another order, a pure function of (seed, step)."""
        sample = np.arange(batch_size, dtype=np.int64)[rows] + step * batch_size
        return self._take(shuffled(sample, len(self), seed))

    def batches(self, batch_size: int, part: tuple[int, int]) -> Iterator[Batch]:
        """A part of the rows once, in order; all parts give batches of the same sizes."""
        mine, own = share_of(len(self), part)
        for start in range(0, len(mine), batch_size):
            some = slice(start, start + batch_size)
            yield without_targets(self._take(mine[some]), ~own[some])

    def _take(self, index: np.ndarray) -> Batch:
        return Batch(self.rows.tokens[index], self.rows.targets[index], self.rows.document[index])


def pack(chats: Sequence[EncodedChat], seq_len: int, fill: int = 0) -> PackedChats:
    """Rows of `seq_len` tokens, first fit by falling length, filled up with the token `fill`.

    A chat that is too long loses its end: what is left of a cut answer is learned, its stop token is not. Raises TenfoldError
    where no answer fits.
    """
    pieces = [_piece(chat, seq_len) for chat in chats]
    fitting = [i for i, (_, targets) in enumerate(pieces) if (targets >= 0).any()]
    if not fitting:
        raise TenfoldError(f"No chat has an answer within {seq_len} tokens: raise seq_len.")
    packed: list[list[int]] = []
    room: list[int] = []
    for i in sorted(fitting, key=lambda i: -len(pieces[i][0])):
        size = len(pieces[i][0])
        row = next((r for r, free in enumerate(room) if free >= size), len(packed))
        if row == len(packed):
            packed.append([])
            room.append(seq_len)
        packed[row].append(i)
        room[row] -= size
    shape = len(packed), seq_len
    rows = Batch(np.full(shape, fill, np.int64), np.full(shape, -100, np.int64), np.full(shape, -1, np.int32))
    for r, members in enumerate(packed):
        at = 0
        for number, i in enumerate(members):
            tokens, targets = pieces[i]
            place = slice(at, at + len(tokens))
            rows.tokens[r, place], rows.targets[r, place], rows.document[r, place] = tokens, targets, number
            at += len(tokens)
    cut = sum(len(chats[i].tokens) > seq_len + 1 for i in fitting)
    return PackedChats(rows, sum(chats[i].answer_bytes for i in fitting), cut, len(chats) - len(fitting))


def _piece(chat: EncodedChat, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of a chat, at most `seq_len` of each."""
    targets = np.where(chat.learned, chat.tokens, -100)[1:]
    return chat.tokens[:-1][:seq_len], targets[:seq_len]
