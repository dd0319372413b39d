"""Speculative decoding: guesses of the next tokens, from the text so far (prompt lookup) or by a smaller model (draft model).

The step that computes the next token also checks the guesses. It keeps the guesses that equal the model's own draws, so the text
is the same with and without speculation. This saves time if a step of a few rows takes about as long as a step of one row.
"""

from array import array
from dataclasses import dataclass, field

from tenfold.serve.engine.blocks import BlockManager
from tenfold.serve.engine.sampling import best
from tenfold.serve.request import Sequence
from tenfold.serve.runners.runner import BLOCK, ModelInput, Runner

LONGEST, SHORTEST = 4, 2  # tokens of the n-grams that are looked up
CATCH_UP = 128  # most tokens of a text that a draft model reads in one step


class Speculator:
    """Proposes up to `width` tokens for a sequence, from what followed the same n-gram earlier in it.

    After `patience` guesses for a sequence, at least `least_share` of the recent ones must have been right.
    """

    def __init__(self, width: int = 3, least_share: float = 0.25, patience: int = 16):
        self.width, self.least_share, self.patience = width, least_share, patience
        self.drafted = self.accepted = 0
        self._record: dict[int, tuple[float, float]] = {}  # by sequence: guesses and right guesses, decaying
        self._index: dict[
            int, tuple[int, dict[tuple[int, ...], int]]
        ] = {}  # by sequence: tokens indexed, and where each n-gram last ended

    def propose(self, sequence: Sequence) -> list[int]:
        """Guesses for the next tokens; none if too many recent guesses were wrong, except for a new try every 32 tokens."""
        return self._guess(sequence) if self._pays(sequence) else []

    def _pays(self, sequence: Sequence) -> bool:
        drafted, accepted = self._record.get(id(sequence), (0.0, 0.0))
        return drafted < self.patience or accepted >= self.least_share * drafted or len(sequence.tokens) % 32 == 0

    def _guess(self, sequence: Sequence) -> list[int]:
        tokens, seen = sequence.tokens, self._read(sequence)
        for n in range(LONGEST, SHORTEST - 1, -1):
            at = seen.get(tuple(tokens[-n:]))
            if at is not None:
                return tokens[at : at + self.width]
        return []

    def _read(self, sequence: Sequence) -> dict[tuple[int, ...], int]:
        """For each n-gram of the sequence except the last, the index of the token that last followed it."""
        read, seen = self._index.get(id(sequence), (1, {}))
        tokens = sequence.tokens
        for end in range(read, len(tokens)):
            for n in range(SHORTEST, LONGEST + 1):
                if end >= n:
                    seen[tuple(tokens[end - n : end])] = end
        self._index[id(sequence)] = (len(tokens), seen)
        return seen

    def learn(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """Record how many of a sequence's `drafted` guesses were right (`accepted`) in a step."""
        self.drafted += drafted
        self.accepted += accepted
        before = self._record.get(id(sequence), (0.0, 0.0))
        self._record[id(sequence)] = (0.9 * before[0] + drafted, 0.9 * before[1] + accepted)

    def forget(self, sequence: Sequence) -> None:
        self._record.pop(id(sequence), None)
        self._index.pop(id(sequence), None)


@dataclass
class _Reading:
    """The tokens of a sequence that the draft model has computed; their keys and values are in `blocks`."""

    tokens: list[int] = field(default_factory=list)
    blocks: "array[int]" = field(default_factory=lambda: array("i"))


class DraftSpeculator(Speculator):
    """Proposes the most likely tokens of a smaller model with the same vocabulary.

    Its guesses cost more than prompt lookup, so a larger share of them must be right.
    """

    def __init__(self, runner: Runner, n_blocks: int, width: int = 3, least_share: float = 0.5):
        super().__init__(width, least_share)
        self.runner, self.blocks = runner, BlockManager(n_blocks, BLOCK)
        self._readings: dict[int, _Reading] = {}

    def _guess(self, sequence: Sequence) -> list[int]:
        reading, tokens = self._readings.setdefault(id(sequence), _Reading()), sequence.tokens
        if len(tokens) + self.width > self.runner.spec.context:
            return []
        known = min(len(reading.tokens), len(tokens) - 1)
        while reading.tokens[:known] != tokens[:known]:  # drop the wrong guesses that it has read
            known -= 1
        del reading.tokens[known:]
        if not self._read_on(reading, tokens[known : known + CATCH_UP]) or len(reading.tokens) < len(tokens):
            return []
        guesses = [self._likeliest()]
        while len(guesses) < self.width and self._read_on(reading, guesses[-1:]):
            guesses.append(self._likeliest())
        return guesses

    def _read_on(self, reading: _Reading, tokens: list[int]) -> bool:
        """Have the draft model compute the next tokens of a sequence; False if its cache is full."""
        begin, end = len(reading.tokens), len(reading.tokens) + len(tokens)
        if not self.blocks.grow(reading.blocks, end):
            return False
        self._last = self.runner.hidden(ModelInput(tokens, list(range(begin, end)), [len(tokens)], [reading.blocks]))[-1:]
        reading.tokens += tokens
        return True

    def _likeliest(self) -> int:
        return best(self.runner.logits(self._last))[0]

    def forget(self, sequence: Sequence) -> None:
        super().forget(sequence)
        if reading := self._readings.pop(id(sequence), None):
            self.blocks.release(reading.blocks)
