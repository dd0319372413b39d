"""The last stage: a list is filled place by place, by score, rules, variety, and now and then by chance.

The probability of what stands at each place, given what stands before it, is known exactly. It is kept with the list, and the same
code says how likely another model had shown it (`tenfold rank offpolicy`).
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from tenfold.rank.serving.catalogue import Catalogue, Wanted

ARRANGED = 100  # places; those after them are in the order of scores


@dataclass(frozen=True)
class Rules:
    """What a list must be, beside good.

    `where` says what items must have, `boost` adds to the scores of items with a value, `at_most` is how many may have the same
    value of an attribute; `diversity` is the weight of unlikeness to what stands before, against the score, from 0 to 1.
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
    """What is shown. `propensities` are probabilities given the places before; those after `ARRANGED` are certain."""

    tokens: list[int]
    scores: list[float]
    propensities: list[float]


class Places:
    """The places of one list, filled from the first on."""

    def __init__(self, pool: Pool, rules: Rules, catalogue: Catalogue, explore: float):
        """With the probability `explore` a place goes to one drawn evenly from all that may stand there, else to the best."""
        self.pool, self._explore, self._diversity = pool, explore, rules.diversity
        scores = pool.scores.astype(float)
        for attribute, boosts in rules.boost.items():
            values = catalogue.values(attribute)[pool.tokens].astype(str)
            scores = scores + np.array([boosts.get(value, 0.0) for value in values])
        self.scores = scores
        spread = np.ptp(scores) if len(scores) else 0.0
        self._merit = (scores - scores.min()) / spread if spread else np.zeros(len(scores))
        norms = np.linalg.norm(pool.vectors, axis=1, keepdims=True) if self._diversity else 1.0
        self._unit = pool.vectors / np.maximum(norms, 1e-9)
        self._likeness = np.full(len(scores), -1.0)  # to the likest that stands before
        self._free = np.ones(len(scores), bool)
        self._limits = [(catalogue.values(name)[pool.tokens], most, Counter[str]()) for name, most in rules.at_most.items()]

    def chances(self) -> np.ndarray:
        """The probability [m] of each to take the next place; all 0 where none may."""
        free, p = np.flatnonzero(self._free), np.zeros(len(self._free))
        if not len(free):
            return p
        value = (1 - self._diversity) * self._merit - self._diversity * self._likeness
        p[free] = self._explore / len(free)
        p[free[np.argmax(value[free])]] += 1 - self._explore
        return p

    def take(self, i: int) -> None:
        """Let the next place be taken by number `i` of the pool."""
        self._free[i] = False
        if self._diversity:
            self._likeness = np.maximum(self._likeness, self._unit @ self._unit[i])
        for values, most, count in self._limits:
            count[value := str(values[i])] += 1
            if count[value] >= most and value:  # items without a value are not limited
                self._free[values == values[i]] = False


def fill(places: Places, k: int, rng: np.random.Generator) -> List:
    """The first `k` places, or as many as can be filled."""
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
    """The chances at each place of a list that was shown, had the same items stood before it."""
    number = {token: i for i, token in enumerate(places.pool.tokens.tolist())}
    found = []
    for token in shown[:ARRANGED]:
        found.append(places.chances())
        if token in number:
            places.take(number[token])
    return found
