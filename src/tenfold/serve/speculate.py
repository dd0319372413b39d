"""Guesses that cost nothing to make: what followed the last time the same tokens were written (prompt lookup).

A guess is checked in the step that would have been made anyway, and is right only where the model's own draw agrees, so
the text is the same with and without. It pays where a step of a few rows takes about as long as one of one row.
"""

from tenfold.serve.request import Sequence

LONGEST, SHORTEST = 4, 2


class Speculator:
    """Proposes up to `width` tokens for a sequence; each sequence's share of right guesses decides whether it goes on."""

    def __init__(self, width: int = 3, least_share: float = 0.25, patience: int = 16):
        self.width, self.least_share, self.patience = width, least_share, patience
        self.drafted = self.accepted = 0
        self._record: dict[int, tuple[float, float]] = {}  # by sequence: guesses and right ones, fading
        self._index: dict[int, tuple[int, dict[tuple[int, ...], int]]] = {}  # tokens read, where each n-gram last ended

    def propose(self, sequence: Sequence) -> list[int]:
        """What may come next; nothing where guesses did not pay, but a new try now and then."""
        drafted, accepted = self._record.get(id(sequence), (0.0, 0.0))
        if drafted >= self.patience and accepted < self.least_share * drafted and len(sequence.tokens) % 32:
            return []
        tokens, seen = sequence.tokens, self._read(sequence)
        for n in range(LONGEST, SHORTEST - 1, -1):
            at = seen.get(tuple(tokens[-n:]))
            if at is not None:
                return tokens[at : at + self.width]
        return []

    def _read(self, sequence: Sequence) -> dict[tuple[int, ...], int]:
        """Where each n-gram of the sequence, but for the last tokens themselves, was last followed by something."""
        read, seen = self._index.get(id(sequence), (1, {}))
        tokens = sequence.tokens
        for end in range(read, len(tokens)):
            for n in range(SHORTEST, LONGEST + 1):
                if end >= n:
                    seen[tuple(tokens[end - n : end])] = end
        self._index[id(sequence)] = (len(tokens), seen)
        return seen

    def learn(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """How many of a sequence's guesses were right in a step."""
        self.drafted += drafted
        self.accepted += accepted
        before = self._record.get(id(sequence), (0.0, 0.0))
        self._record[id(sequence)] = (0.9 * before[0] + drafted, 0.9 * before[1] + accepted)

    def forget(self, sequence: Sequence) -> None:
        self._record.pop(id(sequence), None)
        self._index.pop(id(sequence), None)
