"""The last stage: a list is filled place by place, by scores, rules and diversity, and with exploration by chance.

The probability of each item at its place, given the items before it, is known exactly. It is kept with the list, and the same code
computes the probability by which another ranker would have shown it (`tenfold rank offpolicy`).
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from tenfold.rank.serving.catalogue import Catalogue, Wanted
from tenfold.spec.errors import TenfoldError

ARRANGED = 100  # places that rules and chance fill; later ones are in the order of scores


@dataclass(frozen=True)
class Rules:
    """Rules of a list, by attributes of the items.

    `where` are the values that items must have; `boost` adds to the scores of items with a value; `at_most` limits how many of the
    first `ARRANGED` items have the same value. `diversity`, from 0 to 1, is the weight of being unlike the items before (cosine),
    against the score (maximal marginal relevance, Carbonell and Goldstein 1998).
    """

    where: dict[str, Wanted] = field(default_factory=dict)
    boost: dict[str, dict[str, float]] = field(default_factory=dict)
    at_most: dict[str, Annotated[int, Ge(1)]] = field(default_factory=dict)
    diversity: Annotated[float, Ge(0), Le(1)] = 0.0


class Pool(NamedTuple):
    """The items that a list is filled from, the best first: tokens [m], scores [m] and vectors [m, dim]."""

    tokens: np.ndarray
    scores: np.ndarray
    vectors: np.ndarray


class List(NamedTuple):
    """A filled list. `propensities` are probabilities given the places before; they are 1 after the first `ARRANGED` places."""

    tokens: list[int]
    scores: list[float]
    propensities: list[float]


class Places:
    """The places of one list, which `take` fills from the first on."""

    def __init__(self, pool: Pool, rules: Rules, catalogue: Catalogue, explore: float):
        """With the probability `explore` a place goes to an item drawn uniformly from all that may take it, else to the best one.

        Raises TenfoldError for rules with unknown attributes, and for boosts of a number by a text.
        """
        self.pool, self._explore, self._diversity = pool, explore, rules.diversity
        scores = pool.scores.astype(float)
        for attribute, boosts in rules.boost.items():
            scores = scores + _boosts(attribute, catalogue.values(attribute)[pool.tokens], boosts)
        self.scores = scores
        spread = np.ptp(scores) if len(scores) else 0.0
        self._merit = (scores - scores.min()) / spread if spread else np.zeros(len(scores))
        norms = np.linalg.norm(pool.vectors, axis=1, keepdims=True) if self._diversity else 1.0
        self._unit = pool.vectors / np.maximum(norms, 1e-9)
        self._likeness = np.full(len(scores), -1.0)  # cosine to the most similar item before
        self._free = np.ones(len(scores), bool)
        self._limits = [(catalogue.values(name)[pool.tokens], most, Counter[str]()) for name, most in rules.at_most.items()]

    def chances(self) -> np.ndarray:
        """The probability of each item of the pool to take the next place, float64 [m]; all 0 where none may."""
        free, p = np.flatnonzero(self._free), np.zeros(len(self._free))
        if not len(free):
            return p
        value = (1 - self._diversity) * self._merit - self._diversity * self._likeness
        p[free] = self._explore / len(free)
        p[free[np.argmax(value[free])]] += 1 - self._explore
        return p

    def take(self, i: int) -> None:
        """Give the next place to item number `i` of the pool."""
        self._free[i] = False
        if self._diversity:
            self._likeness = np.maximum(self._likeness, self._unit @ self._unit[i])
        for values, most, count in self._limits:
            count[value := str(values[i])] += 1
            if count[value] >= most and value:  # items without a value are not limited
                self._free[values == values[i]] = False


def _boosts(attribute: str, values: np.ndarray, boosts: dict[str, float]) -> np.ndarray:
    """What is added to the score of each item, by its value; "2001" is the number 2001 where the values are numbers.

    Raises TenfoldError for other texts where the values are numbers.
    """
    known: dict[Any, float] = dict(boosts)
    if values.dtype.kind == "f":
        try:
            known = {float(text): boost for text, boost in boosts.items()}
        except ValueError:
            raise TenfoldError(f"The attribute {attribute!r} is a number, and its boosts have texts: give numbers.") from None
    return np.array([known.get(value, 0.0) for value in values.tolist()])


def fill(places: Places, k: int, rng: np.random.Generator) -> List:
    """Fill `k` places, or as many as the rules allow."""
    taken: list[int] = []
    propensities: list[float] = []
    while len(taken) < min(k, ARRANGED) and (p := places.chances()).any():
        i = int(np.argmax(p)) if p.max() == 1 else int(rng.choice(len(p), p=p))
        places.take(i)
        taken.append(i)
        propensities.append(float(p[i]))
    if len(taken) == ARRANGED < k:
        left = np.flatnonzero(places._free)
        rest = left[np.argsort(-places.scores[left], kind="stable")][: k - ARRANGED]
        taken += rest.tolist()
        propensities += [1.0] * len(rest)
    return List(places.pool.tokens[taken].tolist(), places.scores[taken].tolist(), propensities)


def retraced(places: Places, shown: list[int]) -> list[np.ndarray]:
    """The chances [m] at each of the first `ARRANGED` places of a list that was shown, given the shown items before."""
    number = {token: i for i, token in enumerate(places.pool.tokens.tolist())}
    found = []
    for token in shown[:ARRANGED]:
        found.append(places.chances())
        if token in number:
            places.take(number[token])
    return found
