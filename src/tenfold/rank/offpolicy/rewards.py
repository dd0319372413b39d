"""A model of rewards for the doubly robust estimate: least squares on an item's rate, a place's rate, and scores.

It need not be right: the estimate stays unbiased, and is the more certain the better the model. Each row is modelled by what other
folds of users say, so that no reward explains itself.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

FOLDS = 5
PRIOR = 20.0  # rows at the mean rate, which an item's or a place's own rows are added to
RIDGE = 1.0


class Choice(NamedTuple):
    """Items at places, arrays of one shape: numbers of items, of places, and a score of each (zeros where there is none)."""

    item: np.ndarray
    place: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class RewardModel:
    """Rates by number, and weights of [1, item's rate, place's rate, score]."""

    items: np.ndarray
    places: np.ndarray
    weights: np.ndarray

    @classmethod
    def fit(cls, shown: Choice, reward: np.ndarray, sizes: tuple[int, int]) -> "RewardModel":
        """Of rows [n] among `sizes` items and places."""
        items, places = (_rates(of, reward, size) for of, size in zip(shown[:2], sizes, strict=True))
        of_item, of_place = (_rates_without_own(of, reward, size) for of, size in zip(shown[:2], sizes, strict=True))
        x = _features(of_item, of_place, shown.score)
        penalty = np.diag([0.0, *[RIDGE * reward.var()] * (x.shape[1] - 1)])
        return cls(items, places, np.linalg.lstsq(x.T @ x + penalty, x.T @ reward, rcond=None)[0])

    def predict(self, choice: Choice) -> np.ndarray:
        """The expected rewards, of the shape of the choice."""
        return _features(self.items[choice.item], self.places[choice.place], choice.score) @ self.weights


def _features(item: np.ndarray, place: np.ndarray, score: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(score), item, place, score], -1)


def _sums(of: np.ndarray, reward: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    mean = reward.mean() if len(reward) else 0.0
    return np.bincount(of, reward, size) + PRIOR * mean, np.bincount(of, minlength=size) + PRIOR


def _rates(of: np.ndarray, reward: np.ndarray, size: int) -> np.ndarray:
    sums, counts = _sums(of, reward, size)
    return sums / counts


def _rates_without_own(of: np.ndarray, reward: np.ndarray, size: int) -> np.ndarray:
    """For each row the rate of its number among the other rows, lest the fit trust rates of few rows too much."""
    sums, counts = _sums(of, reward, size)
    return (sums[of] - reward) / (counts[of] - 1)


def folds_of(group: np.ndarray) -> np.ndarray:
    """The fold of each row; a group, by number, is in one."""
    return np.random.default_rng(0).permutation(group.max() + 1)[group] % FOLDS
