"""Several corpora (sources) mixed by weights that may change during the run, as a pure function of (seed, step).

The source of each row of a run is dealt from decks. A deck holds `DECK` cards; each card is a source, and each source has cards
in proportion to its weight. A deck is shuffled by (seed, phase, number of the deck); a phase is a range of steps with the same
weights. So the rows that a source has given before any step can be counted exactly, without a state that a checkpoint must keep,
and the order of rows within a source does not depend on the weights.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from tenfold.data.text.batches import Batch, permute, row_count, shuffled, text_rows
from tenfold.data.text.corpus import Corpus
from tenfold.model.io.tokenizer import same_tokenizer
from tenfold.spec.errors import TenfoldError
from tenfold.spec.vocabulary import Vocabulary

DECK = 2**14  # cards in a deck

Weight = float | Sequence[tuple[int, float]]  # a number, or pairs of (step, the weight from that step on)


@dataclass(frozen=True)
class Mixture:
    """Corpora by name, and the weight of each: a number, or pairs of (step, the weight from that step on).

    Weights need not sum to 1. `make_mixture` checks them.
    """

    corpora: Mapping[str, Corpus]
    weights: Mapping[str, Weight]

    @property
    def first(self) -> Corpus:
        return next(iter(self.corpora.values()))

    @property
    def vocabulary(self) -> Vocabulary:
        return self.first.vocabulary

    @property
    def vocab_size(self) -> int:
        return self.first.vocab_size

    @property
    def is_remote(self) -> bool:
        return any(corpus.is_remote for corpus in self.corpora.values())

    @property
    def directory(self) -> Path:
        """The folder of the tokenizer, which is the same for all corpora."""
        return self.first.directory

    @cached_property
    def phases(self) -> list[tuple[int, tuple[int, ...]]]:
        """The first step of each phase, and the number of cards that each source has in its decks."""
        schedules = [_schedule(weight) for weight in self.weights.values()]
        begins = sorted({step for schedule in schedules for step, _ in schedule})
        return [(step, _cards([_at(schedule, step) for schedule in schedules])) for step in begins]

    def shares(self, step: int) -> dict[str, float]:
        """The share of each source in the rows at a step, exactly as in the decks."""
        cards = next(cards for begin, cards in reversed(self.phases) if begin <= step)
        return {name: count / DECK for name, count in zip(self.corpora, cards, strict=True)}

    def drawn(self, step: int, batch_size: int, seed: int) -> dict[str, int]:
        """The number of rows that each source gives before `step`."""
        return dict(zip(self.corpora, map(int, self._drawn(step, batch_size, seed)), strict=True))

    def batch(self, step: int, rows: slice = slice(None), *, batch_size: int, seq_len: int, seed: int) -> Batch:
        """`rows` of the `batch_size` rows of a step, as `data.text.batches.train_batch` for a single corpus."""
        source, sample = self._deal(step, np.arange(batch_size)[rows], batch_size, seed)
        shape = (len(source), seq_len)
        batch = Batch(np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.int32))
        for number, corpus in enumerate(self.corpora.values()):
            own = source == number
            if own.any():
                index = shuffled(sample[own], row_count(corpus, "train", seq_len), seed)
                part = text_rows(corpus, "train", index, seq_len)
                batch.tokens[own], batch.targets[own], batch.document[own] = part.tokens, part.targets, part.document
        return batch

    def require_rows(self, steps: int, *, batch_size: int, seq_len: int, seed: int, max_epochs: float) -> None:
        """Raises TenfoldError if a source would be read more than `max_epochs` times in `steps` steps."""
        for name, rows in self.drawn(steps, batch_size, seed).items():
            epochs = rows / row_count(self.corpora[name], "train", seq_len)
            if epochs > max_epochs:
                raise TenfoldError(
                    f"The run reads {name!r} {epochs:.1f} times where {max_epochs:g} are allowed: give it less weight, add "
                    "text, or allow more (max_epochs)."
                )

    def _deal(self, step: int, rows: np.ndarray, batch_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """For each of these rows of a step: the number of its source, and how many rows that source gave before it."""
        begin, cards = next(phase for phase in reversed(self.phases) if phase[0] <= step)
        before = self._drawn(begin, batch_size, seed)
        deck, place = np.divmod((step - begin) * batch_size + rows, DECK)
        source, sample = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        for number in np.unique(deck):
            inside = deck == number
            dealt, earlier = _deck(seed, begin, int(number), cards)
            source[inside] = dealt[place[inside]]
            sample[inside] = before[source[inside]] + number * np.array(cards)[source[inside]] + earlier[place[inside]]
        return source, sample

    def _drawn(self, step: int, batch_size: int, seed: int) -> np.ndarray:
        total = np.zeros(len(self.corpora), np.int64)
        for (begin, cards), (end, _) in pairwise([*self.phases, (step, ())]):
            decks, rest = divmod(max(0, min(step, end) - begin) * batch_size, DECK)
            total += decks * np.array(cards)
            if rest:
                total += np.bincount(_deck(seed, begin, decks, cards)[0][:rest], minlength=len(total))
        return total


def make_mixture(corpora: Mapping[str, Corpus], weights: Mapping[str, Weight]) -> Mixture:
    """A mixture of corpora. Raises TenfoldError for invalid weights, and if the tokenizers differ."""
    if not corpora:
        raise TenfoldError("A mixture needs at least one corpus.")
    for name, weight in weights.items():
        schedule = _schedule(weight)
        if not schedule or schedule[0][0] != 0:
            raise TenfoldError(f"The weights of {name!r} in the mixture must begin with step 0.")
        for step, value in schedule:
            if not 0 <= value < np.inf:
                raise TenfoldError(f"The weight of {name!r} in the mixture is {value:g} from step {step} on: give 0 or more.")
        if any(later <= earlier for (earlier, _), (later, _) in pairwise(schedule)):
            raise TenfoldError(f"The steps in the weights of {name!r} in the mixture must rise.")
    mixture = Mixture(corpora, weights)
    for name, corpus in corpora.items():
        if not same_tokenizer(corpus.directory, mixture.directory):
            raise TenfoldError(
                f"{name!r} has another tokenizer than {next(iter(corpora))!r}, so they cannot be mixed: build it again with "
                f"`tenfold data build --tokenizer-from {mixture.directory}`."
            )
    _ = mixture.phases
    return mixture


def parts(text: Corpus | Mixture) -> Iterator[tuple[str, Corpus, float]]:
    """The corpora to validate on: name, corpus, and its share in the last phase. A single corpus has the name ""."""
    if isinstance(text, Corpus):
        yield "", text, 1.0
        return
    shares = text.shares(text.phases[-1][0])
    yield from ((name, corpus, shares[name]) for name, corpus in text.corpora.items() if shares[name])


@lru_cache(maxsize=64)
def _deck(seed: int, begin: int, number: int, cards: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A shuffled deck: the source of each card, and the number of cards of the same source before it."""
    key = int.from_bytes(hashlib.sha256(f"mixture:{seed}:{begin}".encode()).digest()[:8])
    deck = np.repeat(np.arange(len(cards)), cards)[permute(np.arange(DECK), DECK, key, number)]
    earlier = np.empty(DECK, np.int64)
    for source, count in enumerate(cards):
        earlier[deck == source] = np.arange(count)
    return deck, earlier


def _schedule(weight: Weight) -> list[tuple[int, float]]:
    return [(0, float(weight))] if isinstance(weight, int | float) else [(step, float(value)) for step, value in weight]


def _at(schedule: list[tuple[int, float]], step: int) -> float:
    return [value for begin, value in schedule if begin <= step][-1]


def _cards(weights: list[float]) -> tuple[int, ...]:
    """The cards of each source in a deck: in proportion to the weights (largest remainders), at least one for a weight above 0."""
    total = sum(weights)
    if total <= 0:
        raise TenfoldError("The weights of the mixture sum to zero at some step: give at least one corpus a weight above 0.")
    exact = np.array(weights) / total * DECK
    cards = np.maximum(np.floor(exact), exact > 0).astype(np.int64)
    while cards.sum() != DECK:
        missing = int(np.sign(DECK - cards.sum()))
        cards[np.argmax(missing * (exact - cards))] += missing
    return tuple(map(int, cards))
