"""Forecast of the loss along a run: its end by the law, the curve towards it by smaller runs of the same schedule.

With one learning rate schedule, loss relative to the final loss, over the share of the run that is done, is nearly the same curve
at every size (Qiu et al., arXiv 2507.02119). The remaining difference depends on the tokens per parameter: at each share, the
logarithm of the relative loss is fitted by a parabola in the logarithm of the tokens per parameter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from tenfold.scale.law import LEVELS, Law, fit_law
from tenfold.scale.points import Point, number_of, read_rows, require_columns
from tenfold.scale.worth import DRAWS, loss_draws
from tenfold.spec.errors import TenfoldError

MOMENTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # shares of a run's tokens
TAIL = np.linspace(0.9, 1.0, 11)  # shares of a run over which the loss of its last tenth is averaged
COLUMNS = ("run", "params", "tokens", "loss")
FEWEST = 6  # finished runs
ALIKE = 0.1  # runs whose log of tokens per parameter rounds to the same multiple of this count as one value in the parabola


@dataclass(frozen=True)
class Curve:
    """A finished run: its parameters, and its `loss` after `tokens` [checkpoints], the last of which is its end.

    `known` is the final loss that the law is fitted to, where it is measured on other text than the curve (validation loss beside
    a curve of training loss).
    """

    run: str
    params: float
    tokens: np.ndarray
    loss: np.ndarray
    known: float | None = None

    @property
    def end(self) -> float:
        return float(self.loss[-1]) if self.known is None else self.known

    @property
    def point(self) -> Point:
        return Point(self.params, float(self.tokens[-1]), 6 * self.params * float(self.tokens[-1]), self.end)

    def at(self, shares: Sequence[float] | np.ndarray) -> np.ndarray:
        """The loss at these shares (0 to 1) of the run, by linear interpolation."""
        return np.interp(shares, self.tokens / self.tokens[-1], self.loss)

    def watched(self) -> np.ndarray:
        """The loss at all `MOMENTS`, then its mean over the last tenth."""
        return np.append(self.at(MOMENTS), self.at(TAIL).mean())


@dataclass(frozen=True)
class Moment:
    """The forecast of the loss at a `share` (0 to 1) of the run, or of its mean over the last tenth (`share` None)."""

    share: float | None
    median: float
    intervals: dict[int, tuple[float, float]]


def read_curves(path: Path) -> list[Curve]:
    """Read a CSV file with a row for each checkpoint: run, params, tokens (so far), loss.

    Raises TenfoldError for missing columns, rows without positive numbers, runs with two values of params, and runs without a
    checkpoint in their first tenth.
    """
    header, rows = read_rows(path)
    require_columns(path, header, COLUMNS)
    read = [(row["run"] or "", [number_of(row[name]) for name in COLUMNS[1:]]) for row in rows]
    for number, (_, figures) in enumerate(read, start=2):
        if not (np.isfinite(figures).all() and min(figures) > 0):
            raise TenfoldError(f"{path}, row {number}: params, tokens and loss must be positive numbers.")
    curves = []
    for run, group in groupby(sorted(read), itemgetter(0)):
        params, tokens, loss = np.array([figures for _, figures in group]).T
        if params[0] != params[-1]:
            raise TenfoldError(f"{path}: {run} has {params[0]:g} and {params[-1]:g} parameters: give each run its own name.")
        if tokens[0] > MOMENTS[0] * tokens[-1]:
            raise TenfoldError(f"{path}: the first checkpoint of {run} lies beyond a tenth of the run: add an earlier one.")
        curves.append(Curve(run, float(params[-1]), tokens, loss))
    return curves


def forecast_trajectory(
    curves: Sequence[Curve], params: float, tokens: float, *, asymptote: tuple[float, float] | None = None
) -> list[Moment]:
    """The loss of a run of `params` and `tokens` at all `MOMENTS`, and its mean over the last tenth, with intervals.

    All runs must have the same schedule. Raises TenfoldError for fewer than 6 runs, and where `fit_law` does.
    """
    if len(curves) < FEWEST:
        raise TenfoldError(f"A trajectory needs {FEWEST} finished runs, and the file has {len(curves)}: add more.")
    return moments(fit_law([c.point for c in curves], asymptote=asymptote), curves, params, tokens)


def moments(law: Law, curves: Sequence[Curve], params: float, tokens: float, unit: float = 1.0) -> list[Moment]:
    """`forecast_trajectory` by a given law. `unit` is one unit of the curves' loss in units of the law's loss."""
    drawn = _draws(law, curves, params, tokens) / unit
    found = []
    for share, losses in zip((*MOMENTS, None), drawn.T, strict=True):
        ends = {level: np.quantile(losses, [0.5 - level / 200, 0.5 + level / 200]) for level in LEVELS}
        intervals = {level: (float(low), float(high)) for level, (low, high) in ends.items()}
        found.append(Moment(share, float(np.median(losses)), intervals))
    return found


def _draws(law: Law, curves: Sequence[Curve], params: float, tokens: float) -> np.ndarray:
    """Draws of the loss [DRAWS, moments and the mean]: the final loss by the law, times the relative loss by the curves' parabola
    with its scatter (Student's t)."""
    ratios = np.log([c.point.tokens / c.params for c in curves])
    middle, degree = ratios.mean(), min(2, len(set(np.round(ratios / ALIKE))) - 1)
    design, here = (np.vander(np.atleast_1d(x) - middle, degree + 1) for x in (ratios, np.log(tokens / params)))
    left = np.log([c.watched() / c.end for c in curves])
    fitted, free = np.linalg.pinv(design) @ left, len(curves) - degree - 1
    variance = ((left - design @ fitted) ** 2).sum(0) / free * (1 + here @ np.linalg.inv(design.T @ design) @ here.T)[0, 0]
    scatter = np.sqrt(variance) * np.random.default_rng(0).standard_t(free, (DRAWS, 1))
    return loss_draws(law, [params], [tokens]) * np.exp(here @ fitted + scatter)
