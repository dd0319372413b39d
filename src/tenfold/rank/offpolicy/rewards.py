"""A model of rewards for the doubly robust estimate: least squares on the item's rate, the place's rate, and the score.

The estimate is unbiased even where the model is wrong; the better the model, the narrower the interval. The reward of a row is
predicted by a model fitted on the other folds of users, so that no reward predicts itself.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

FOLDS = 5
PRIOR = 20.0  # pseudo-rows with the mean reward, added to those of each item and place
RIDGE = 1.0  # penalty of the weights, in units of the variance of the rewards


class Choice(NamedTuple):
    """Items at places, arrays of one shape: numbers of items, of places, and a score of each (zeros where there is none)."""

    item: np.ndarray
    place: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class RewardModel:
    """Mean rewards (rates) by item number and by place, and the weights of [1, item's rate, place's rate, score]."""

    items: np.ndarray
    places: np.ndarray
    weights: np.ndarray

    @classmethod
    def fit(cls, shown: Choice, reward: np.ndarray, sizes: tuple[int, int]) -> "RewardModel":
        """Fit the model on shown items and rewards [n]; `sizes` are the numbers of items and of places."""
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
    """For each row the rate over the other rows of its number, so that the fit does not trust rates of few rows too much."""
    sums, counts = _sums(of, reward, size)
    return (sums[of] - reward) / (counts[of] - 1)


def folds_of(group: np.ndarray) -> np.ndarray:
    """The fold of each row [n]; all rows of a group are in the same one."""
    return np.random.default_rng(0).permutation(group.max() + 1)[group] % FOLDS
