"""What a policy would have earned, from the log of another: IPS, SNIPS and the doubly robust estimate, with 95 % intervals.

A row is a place of a shown list: what it earned, and the weight of the two policies' probabilities of showing just that there. The
value is the mean reward of a place. Intervals are by the delta method over groups of rows that depend on each other (a user's).
Sources: Swaminathan and Joachims 2015 (SNIPS); Dudik, Langford and Li 2011 (DR).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from tenfold.spec.errors import TenfoldError

FEWEST = 30  # groups that an interval needs


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rows:
    """Arrays of one length: what was earned, the weight, and the group; and for DR the model's rewards [n] of what was shown and
    of what the policy would show (the mean over its choices)."""

    reward: np.ndarray
    weight: np.ndarray
    group: np.ndarray
    modelled: np.ndarray | None = None
    expected: np.ndarray | None = None


def estimates(rows: Rows) -> dict[str, Estimate]:
    """`logged` is what the log's own policy earned; `dr` needs modelled rewards.

    Raises TenfoldError for rows that allow no estimate: too few groups, or values that are no numbers.
    """
    w, r = rows.weight, rows.reward
    group = groups(rows.group)
    if not (np.isfinite(w).all() and np.isfinite(r).all() and (w >= 0).all()):
        raise TenfoldError("The log has rewards or propensities that are no numbers: propensities lie above 0 and up to 1.")
    if not w.any():
        raise TenfoldError("Nothing that the policy would show was ever shown: log with --explore above 0.")
    ones = np.ones(len(r))
    found = {"logged": _ratio(r, ones, group), "ips": _ratio(w * r, ones, group), "snips": _ratio(w * r, w, group)}
    if rows.modelled is not None and rows.expected is not None:
        found["dr"] = _ratio(rows.expected + w * (r - rows.modelled), ones, group)
    return found


def groups(given: np.ndarray) -> np.ndarray:
    """Groups by number. Raises TenfoldError where there are too few for an interval."""
    names, number = np.unique(given, return_inverse=True)
    if len(names) < FEWEST:
        raise TenfoldError(f"The log has {len(names)} users or lists: an interval needs at least {FEWEST}.")
    return number


def effective_rows(weight: np.ndarray) -> float:
    """How many rows of equal weights would say as much (Kish)."""
    return float(weight.sum() ** 2 / (weight**2).sum()) if weight.any() else 0.0


def _ratio(above: np.ndarray, below: np.ndarray, group: np.ndarray) -> Estimate:
    """The ratio of two sums, with Student's t over groups."""
    a, b = (np.bincount(group, values) for values in (above, below))
    value, n = a.sum() / b.sum(), len(a)
    error = math.sqrt(n / (n - 1) * ((a - value * b) ** 2).sum()) / b.sum()
    half = stats.t.ppf(0.975, n - 1) * error
    return Estimate(float(value), float(value - half), float(value + half))
