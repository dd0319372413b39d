"""The loss along a run, not only at its end: the law says the end, smaller runs of the same schedule the way there.

Loss curves of one learning rate schedule, over the share of the run that is done and relative to their end, are nearly one curve
at every size (Qiu et al., arXiv 2507.02119). What is left of difference follows the tokens per parameter, in whose logarithm
the logarithm of the relative loss is fitted by a parabola at every moment.
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
TAIL = np.linspace(0.9, 1.0, 11)  # over which the last checkpoints are averaged
COLUMNS = ("run", "params", "tokens", "loss")
FEWEST = 6
ALIKE = 0.1  # in the logarithm of tokens per parameter


@dataclass(frozen=True)
class Curve:
    """A finished run: its parameters, and the loss after so many tokens [checkpoints], the last at its end.

    `known` is the loss at the end that a law knows, where that is of another text than the curve.
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
        """Loss at shares of the run."""
        return np.interp(shares, self.tokens / self.tokens[-1], self.loss)

    def watched(self) -> np.ndarray:
        """Loss at all `MOMENTS`, and the mean of the last tenth."""
        return np.append(self.at(MOMENTS), self.at(TAIL).mean())


@dataclass(frozen=True)
class Moment:
    """The forecast at a share of the run, or of the mean over its last tenth (None)."""

    share: float | None
    median: float
    intervals: dict[int, tuple[float, float]]


def read_curves(path: Path) -> list[Curve]:
    """A CSV file with a row for each checkpoint: run, params, tokens (so far), loss.

    Raises TenfoldError for missing columns, rows without numbers, and runs of two sizes or with nothing in their first tenth.
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
            raise TenfoldError(f"{path}: the first checkpoint of {run} lies beyond a tenth of the run: give earlier ones.")
        curves.append(Curve(run, float(params[-1]), tokens, loss))
    return curves


def forecast_trajectory(
    curves: Sequence[Curve], params: float, tokens: float, *, asymptote: tuple[float, float] | None = None
) -> list[Moment]:
    """The loss of a run of `params` and `tokens` at all `MOMENTS`, and the mean over its last tenth, with their intervals.

    All runs must have the same schedule. Raises TenfoldError for fewer than 6, and as `fit_law` does.
    """
    if len(curves) < FEWEST:
        raise TenfoldError(f"A trajectory needs {FEWEST} finished runs, there are {len(curves)}: train more.")
    return moments(fit_law([c.point for c in curves], asymptote=asymptote), curves, params, tokens)


def moments(law: Law, curves: Sequence[Curve], params: float, tokens: float, unit: float = 1.0) -> list[Moment]:
    """The same by a law that is known. `unit` is what the curves' unit is in that of the law."""
    drawn = _draws(law, curves, params, tokens) / unit
    found = []
    for share, losses in zip((*MOMENTS, None), drawn.T, strict=True):
        ends = {level: np.quantile(losses, [0.5 - level / 200, 0.5 + level / 200]) for level in LEVELS}
        intervals = {level: (float(low), float(high)) for level, (low, high) in ends.items()}
        found.append(Moment(share, float(np.median(losses)), intervals))
    return found


def _draws(law: Law, curves: Sequence[Curve], params: float, tokens: float) -> np.ndarray:
    """Losses [DRAWS, moments and the mean]: the law's end, times what is left there by the other curves (Student's t)."""
    ratios = np.log([c.point.tokens / c.params for c in curves])
    middle, degree = ratios.mean(), min(2, len(set(np.round(ratios / ALIKE))) - 1)
    design, here = (np.vander(np.atleast_1d(x) - middle, degree + 1) for x in (ratios, np.log(tokens / params)))
    left = np.log([c.watched() / c.end for c in curves])
    fitted, free = np.linalg.pinv(design) @ left, len(curves) - degree - 1
    variance = ((left - design @ fitted) ** 2).sum(0) / free * (1 + here @ np.linalg.inv(design.T @ design) @ here.T)[0, 0]
    scatter = np.sqrt(variance) * np.random.default_rng(0).standard_t(free, (DRAWS, 1))
    return loss_draws(law, [params], [tokens]) * np.exp(here @ fitted + scatter)
