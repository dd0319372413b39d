"""A law for models with and without experts: how much the parameters that a token does not use add to a model's size.

A model of N active and M total matrix parameters counts as a dense one of N (M / N)^gamma. gamma is 0 where idle experts are
worth nothing, and 1 where they are worth as much as active weights. Abnar et al. (arXiv 2501.12370) and Ludziejewski et al.
(arXiv 2502.05172) fit more terms, which a ladder of a single sparsity cannot determine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tenfold.scale.forms import FORMS, fit, precision, starts
from tenfold.scale.law import Law, fit_law
from tenfold.scale.points import Point, arrays
from tenfold.spec.errors import TenfoldError

PRIOR_WEIGHT = 1e-4
GRID = np.linspace(-0.2, 1.0, 25)  # of gamma


@dataclass(frozen=True)
class SparsityLaw:
    """`gamma` with its 80 % interval (bootstrap), and the law whose `params` are effective ones."""

    gamma: float
    interval_80: tuple[float, float]
    law: Law

    def effective(self, active: float, total: float) -> float:
        """The parameters of the dense model that counts as much as one of `active` and `total` parameters."""
        return active * (total / active) ** self.gamma


def fit_sparsity(points: Sequence[Point], totals: Sequence[float], *, seed: int = 0, bootstrap: int = 100) -> SparsityLaw:
    """Fit gamma and the law to runs whose `params` are active parameters; `totals` are the total parameters of each.

    Raises TenfoldError for no points, for fewer total than active parameters, where all runs have the same share of active
    parameters, which does not determine gamma, and where `fit_law` does.
    """
    if not points:
        raise TenfoldError("There are no runs to fit: give rows with positive numbers.")
    n, d, _, loss = arrays(points)
    ratio = np.log(np.array(totals, dtype=float) / n)
    if (ratio < -1e-9).any():
        raise TenfoldError("Total parameters cannot be fewer than active ones: are the columns in the right order?")
    if np.ptp(ratio) < 0.1:
        raise TenfoldError("All runs have the same share of active parameters: add runs of dense models, or of another sparsity.")
    draws = np.random.default_rng(seed).multinomial(len(n), np.full(len(n), 1 / len(n)), size=bootstrap) + 1e-9
    weights = np.vstack([np.ones(len(n)), draws])
    objective = np.array([_objectives(np.log(n) + gamma * ratio, np.log(d), np.log(loss), weights) for gamma in GRID])
    best = _lowest(objective)
    low, high = np.quantile(best[1:], (0.1, 0.9))
    gamma = float(best[0])
    dense = [replace(p, params=p.params * float(np.exp(gamma * r))) for p, r in zip(points, ratio, strict=True)]
    law = fit_law(dense, seed=seed)
    return SparsityLaw(gamma, (float(low), float(high)), law)


def _lowest(objective: np.ndarray) -> np.ndarray:
    """For each column of `objective` [grid, B], the gamma at the bottom of the parabola through the lowest value and its
    neighbours [B]."""
    at = objective.argmin(0).clip(1, len(GRID) - 2)
    left, middle, right = (np.take_along_axis(objective, (at + k)[None], 0)[0] for k in (-1, 0, 1))
    shift = 0.5 * (left - right) / np.maximum(left - 2 * middle + right, 1e-15)
    return GRID[at] + np.clip(shift, -1, 1) * (GRID[1] - GRID[0])


def _objectives(log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The objective [B] of the best fit of Chinchilla's form, for each row of weights [B, n]."""
    form, u, v = FORMS["chinchilla"], log_n - log_n.mean(), log_d - log_d.mean()
    first = starts(form, log_loss)
    prior: dict = {"prior": precision(form), "prior_weight": PRIOR_WEIGHT}
    theta, value = fit(form, u, v, log_loss, np.tile(weights[:1], (len(first), 1)), first, **prior)
    _, found = fit(form, u, v, log_loss, weights, np.tile(theta[value.argmin()], (len(weights), 1)), iterations=20, **prior)
    return found
