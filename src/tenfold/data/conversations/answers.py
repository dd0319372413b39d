"""Answers for DPO and KTO, packed into rows: pairs of answers to one prompt, and rated answers with a mismatched answer each."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from tenfold.data.conversations.packing import Piece, first_fit, lay, learns, piece, rows_hash, taken
from tenfold.data.conversations.preferences import Preference, RatedAnswer
from tenfold.data.conversations.tokens import ChatEncoder, EncodedChat
from tenfold.data.text.batches import Batch
from tenfold.spec.errors import TenfoldError


@dataclass(frozen=True)
class PackedAnswers:
    """Rows of examples. `members` int64 [rows, most] has the numbers of the examples in each row, in order, padded with -1.

    Example i has `lengths[i]` (int [2]) target tokens in its two answers, and is `good[i]` or not. For pairs, `rows` holds both
    answers, the chosen one first. For rated answers (KTO), `mismatched` holds the second answer of each example. `cut` is the
    number of examples that lost their end, `left_out` of those that do not fit at all.
    """

    rows: Batch
    members: np.ndarray
    lengths: np.ndarray
    good: np.ndarray
    mismatched: Batch | None = None
    cut: int = 0
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.members)

    @property
    def examples(self) -> int:
        return len(self.lengths)

    @property
    def fingerprint(self) -> str:
        """A hash of all rows and of `good`."""
        other = () if self.mismatched is None else (self.mismatched,)
        return sha256((rows_hash(self.rows, *other) + str(self.good.tolist())).encode()).hexdigest()[:16]

    def take(self, index: np.ndarray) -> "PackedAnswers":
        """The rows numbered `index`."""
        other = None if self.mismatched is None else taken(self.mismatched, index)
        return PackedAnswers(taken(self.rows, index), self.members[index], self.lengths, self.good, other, self.cut, self.left_out)


def pack_pairs(pairs: Sequence[Preference], encoder: ChatEncoder, seq_len: int) -> PackedAnswers:
    """Pack pairs so that both answers of a pair, each after its prompt, are in the same row of `seq_len` tokens.

    If the two are too long together, each that is longer than half a row loses its end. A pair is left out if an answer has no
    token left, or if what is left of both is the same. Raises TenfoldError if no pair is left.
    """
    found: list[tuple[Piece, Piece]] = []
    cut = 0
    for pair in pairs:
        both = [encoder.encode(chat, last_alone=True) for chat in (pair.chosen, pair.rejected)]
        sizes = [len(chat.tokens) - 1 for chat in both]
        limits = [max(seq_len - other, seq_len // 2) for other in reversed(sizes)]
        chosen, rejected = (piece(chat, limit) for chat, limit in zip(both, limits, strict=True))
        if learns(chosen) and learns(rejected) and not np.array_equal(chosen[1], rejected[1]):
            found.append((chosen, rejected))
            cut += any(size > limit for size, limit in zip(sizes, limits, strict=True))
    if not found:
        raise TenfoldError(f"No pair has two different answers within {seq_len} tokens: raise seq_len.")
    packed = first_fit([[len(chosen[0]) + len(rejected[0])] for chosen, rejected in found], seq_len)
    rows = lay([[document for i in row for document in found[i]] for row in packed], seq_len, _fill(encoder))
    good = np.ones(len(found), bool)
    return PackedAnswers(rows, _members(packed), _lengths(found), good, None, cut, len(pairs) - len(found))


def pack_rated(answers: Sequence[RatedAnswer], encoder: ChatEncoder, seq_len: int) -> PackedAnswers:
    """Pack rated answers, each after its prompt; `mismatched` has the answer of the preceding example after the same prompt.

    KTO estimates its KL reference point from the mismatched answers (arXiv 2402.01306). Raises TenfoldError for fewer than two
    examples.
    """
    encoded = [encoder.encode(answer.chat, last_alone=True) for answer in answers]
    kept = [i for i, chat in enumerate(encoded) if learns(piece(chat, seq_len))]
    if len(kept) < 2:
        raise TenfoldError(f"KTO pairs each prompt with another one's answer: give at least two answers that fit {seq_len} tokens.")
    before = [kept[-1], *kept[:-1]]
    crossed = [_crossed(encoded[i], encoded[j]) for i, j in zip(kept, before, strict=True)]
    pieces = [(piece(encoded[i], seq_len), piece(other, seq_len)) for i, other in zip(kept, crossed, strict=True)]
    packed = first_fit([[len(own[0]), len(other[0])] for own, other in pieces], seq_len)
    rows, mismatched = (lay([[pieces[i][which] for i in row] for row in packed], seq_len, _fill(encoder)) for which in (0, 1))
    good = np.array([answers[i].good for i in kept])
    cut = sum(len(encoded[i].tokens) > seq_len + 1 for i in kept)
    return PackedAnswers(rows, _members(packed), _lengths(pieces), good, mismatched, cut, len(answers) - len(kept))


def _crossed(one: EncodedChat, other: EncodedChat) -> EncodedChat:
    """The prompt of `one` with the answer of `other`."""
    prompt, answer = one.tokens[~one.learned], other.tokens[other.learned]
    learned = np.arange(len(prompt) + len(answer)) >= len(prompt)
    return EncodedChat(np.concatenate((prompt, answer)), learned, other.answer_bytes)


def _members(packed: Sequence[Sequence[int]]) -> np.ndarray:
    members = np.full((len(packed), max(map(len, packed))), -1, np.int64)
    for row, own in zip(members, packed, strict=True):
        row[: len(own)] = own
    return members


def _lengths(pieces: Sequence[tuple[Piece, Piece]]) -> np.ndarray:
    return np.array([[int((targets >= 0).sum()) for _, targets in both] for both in pieces])


def _fill(encoder: ChatEncoder) -> int:
    return encoder.vocabulary.pad or 0
