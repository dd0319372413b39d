"""Paired tests of two models on the same prompts, with intervals, and a sequential test of two models in service."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from tenfold.spec.errors import TenfoldError
from tenfold.spec.forecasts import LEVELS

FEWEST = 5  # prompts that a test needs
RESAMPLES = 10_000  # of a bootstrap
DRAWN = 2**22  # values of a bootstrap in memory at once: all samples of the 10,000 documents of a task would need gigabytes


@dataclass(frozen=True)
class PairedTest:
    """The mean of `n` differences NEW - OLD of a loss, with two intervals: Student's t, and the bootstrap."""

    n: int
    mean: float
    t_interval: tuple[float, float]
    bootstrap_interval: tuple[float, float]

    @property
    def passed(self) -> bool:
        """Whether NEW is better beyond noise: both intervals lie below zero."""
        return max(self.t_interval[1], self.bootstrap_interval[1]) < 0

    @property
    def worse(self) -> bool:
        """Whether NEW is worse beyond noise: both intervals lie above zero."""
        return min(self.t_interval[0], self.bootstrap_interval[0]) > 0


def paired_test(differences: Sequence[float] | np.ndarray, level: float = 0.95) -> PairedTest:
    """The test of the `differences` NEW - OLD, with intervals at `level`. Raises TenfoldError for too few or non-finite ones."""
    d, tail = checked(differences, "held-out"), (1 - level) / 2
    mean, half = float(d.mean()), float(stats.t.ppf(1 - tail, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d)))
    low, high = np.quantile(_resampled(d), (tail, 1 - tail))
    return PairedTest(len(d), mean, (mean - half, mean + half), (float(low), float(high)))


def predicted(differences: Sequence[float] | np.ndarray, n: int) -> tuple[float, ...]:
    """Quantiles of the mean of `n` further differences like these: Student's t with the noise of both means.

    Raises TenfoldError as `paired_test`.
    """
    d = checked(differences, "validation")
    scale = d.std(ddof=1) * math.sqrt(1 / len(d) + 1 / n)
    return tuple(float(d.mean() + scale * stats.t.ppf(level, len(d) - 1)) for level in LEVELS)


def checked(differences: Sequence[float] | np.ndarray, which: str) -> np.ndarray:
    """The differences as an array. Raises TenfoldError for fewer than `FEWEST`, or non-finite ones; `which` names the prompts."""
    if len(differences) < FEWEST or not np.isfinite(differences).all():
        finite = int(np.isfinite(differences).sum())
        raise TenfoldError(
            f"A paired test needs at least {FEWEST} {which} prompts, all with finite values: {finite} of {len(differences)} are."
        )
    return np.asarray(differences, float)


@dataclass(frozen=True)
class WinRate:
    """The share of `n` prompts on which NEW wins, ties counted half; its 95 % interval covers Wilson's and the bootstrap's."""

    n: int
    rate: float
    interval: tuple[float, float]


def win_rate(margins: Sequence[float] | np.ndarray) -> WinRate:
    """The win rate from the margin of each prompt, which is above zero where NEW wins."""
    won = (np.sign(np.asarray(margins, float)) + 1) / 2
    wilson, drawn = share_interval(float(won.sum()), len(won)), np.quantile(_resampled(won), (0.025, 0.975))
    return WinRate(len(won), float(won.mean()), (min(wilson[0], float(drawn[0])), max(wilson[1], float(drawn[1]))))


def share_interval(count: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of the share `count` / `n`; `n` must be above 0."""
    z, p = stats.norm.ppf((1 + level) / 2), count / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return float((middle - half) / (1 + z * z / n)), float((middle + half) / (1 + z * z / n))


def mcnemar(old: Sequence[bool], new: Sequence[bool]) -> float:
    """McNemar's exact one-sided test: the probability of at least so many losses, were gains and losses equally likely.

    `old` and `new` say which prompts were answered right; a loss is a prompt that only OLD answered right.
    """
    lost, gained = (sum(a and not b for a, b in zip(x, y, strict=True)) for x, y in ((old, new), (new, old)))
    return float(stats.binomtest(lost, lost + gained, alternative="greater").pvalue) if lost + gained else 1.0


def always_valid(wins: int, losses: int, chance: float = 0.5) -> float:
    """A p-value of the hypothesis that a win has the probability `chance`; it may be read at any time and as often as one likes.

    It is the reciprocal of the mixture likelihood ratio with a uniform prior (Robbins 1970). By Ville's inequality it ever falls to
    p or below with a probability of at most p if the hypothesis is true.
    """
    log_ratio = special.betaln(wins + 1, losses + 1) - special.xlogy(wins, chance) - special.xlogy(losses, 1 - chance)
    return float(math.exp(min(0.0, -log_ratio)))


def always_valid_interval(wins: int, losses: int, error: float = 0.05) -> tuple[float, float]:
    """The probabilities of a win that `always_valid` does not reject at `error`: a confidence sequence, valid at all times."""
    n = wins + losses
    likeliest = wins / n if n else 0.5

    def beyond(chance: float) -> float:
        return always_valid(wins, losses, chance) - error

    low = optimize.brentq(beyond, 0.0, likeliest) if beyond(0.0) < 0 else 0.0
    high = optimize.brentq(beyond, likeliest, 1.0) if beyond(1.0) < 0 else 1.0
    return float(low), float(high)


def _resampled(values: np.ndarray) -> np.ndarray:
    """The means of `RESAMPLES` samples of `values` with replacement."""
    rng, n = np.random.default_rng(0), len(values)
    at_once = max(1, DRAWN // n)
    blocks = [min(at_once, RESAMPLES - first) for first in range(0, RESAMPLES, at_once)]
    return np.concatenate([values[rng.integers(0, n, (samples, n))].mean(1) for samples in blocks])
