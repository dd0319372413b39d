"""Off-policy estimates of what a policy would have earned, from the log of another: IPS, SNIPS and doubly robust (DR).

A row is a place of a shown list, with its reward and its weight: the ratio of the two policies' probabilities of showing that item
there. The value of a policy is the mean reward of a place. The 95 % intervals are by the delta method over groups of rows that
depend on each other (those of a user).
Sources: Swaminathan and Joachims 2015 (SNIPS); Dudik, Langford and Li 2011 (DR).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from tenfold.spec.errors import TenfoldError

FEWEST = 30  # groups that an interval needs at least


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rows:
    """Arrays [n]: the reward, the weight and the group of each row.

    For DR also the rewards that a model predicts: `modelled` for the item that was shown, and `expected` for the policy (the mean
    over its choices).
    """

    reward: np.ndarray
    weight: np.ndarray
    group: np.ndarray
    modelled: np.ndarray | None = None
    expected: np.ndarray | None = None


def estimates(rows: Rows) -> dict[str, Estimate]:
    """The estimates by name: `logged` (what the log's own policy earned), `ips`, `snips`, and `dr` where rewards are modelled.

    Raises TenfoldError for rows that allow no estimate: too few groups, non-finite values, or weights that are all zero.
    """
    w, r = rows.weight, rows.reward
    group = groups(rows.group)
    if not (np.isfinite(w).all() and np.isfinite(r).all() and (w >= 0).all()):
        raise TenfoldError(
            "The log has rewards or propensities that are no numbers: give finite rewards, and propensities above 0 and up to 1."
        )
    if not w.any():
        raise TenfoldError(
            "The log has no item at a place where the policy would show it: serve with --explore above 0 to get such a log."
        )
    ones = np.ones(len(r))
    found = {"logged": _ratio(r, ones, group), "ips": _ratio(w * r, ones, group), "snips": _ratio(w * r, w, group)}
    if rows.modelled is not None and rows.expected is not None:
        found["dr"] = _ratio(rows.expected + w * (r - rows.modelled), ones, group)
    return found


def groups(given: np.ndarray) -> np.ndarray:
    """The number of each row's group, from 0. Raises TenfoldError where there are too few groups for an interval."""
    names, number = np.unique(given, return_inverse=True)
    if len(names) < FEWEST:
        raise TenfoldError(f"The log has {len(names)} users or lists: an interval needs at least {FEWEST}.")
    return number


def effective_rows(weight: np.ndarray) -> float:
    """Kish's effective sample size: the number of rows with equal weights that would give the same variance."""
    return float(weight.sum() ** 2 / (weight**2).sum()) if weight.any() else 0.0


def _ratio(above: np.ndarray, below: np.ndarray, group: np.ndarray) -> Estimate:
    """The ratio of two sums over rows, with Student's t interval over groups."""
    a, b = (np.bincount(group, values) for values in (above, below))
    value, n = a.sum() / b.sum(), len(a)
    error = math.sqrt(n / (n - 1) * ((a - value * b) ** 2).sum()) / b.sum()
    half = stats.t.ppf(0.975, n - 1) * error
    return Estimate(float(value), float(value - half), float(value + half))
