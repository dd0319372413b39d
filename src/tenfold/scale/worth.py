"""The value of the next generations, from a law and a table of value by loss, and the probability that each gains a given step.

A generation has ten times the compute of the one before; generation 0 is the compute-optimal run at the largest compute of the
law's points. Losses are drawn from the law's full distribution, jointly for all generations: a law that is too optimistic about
one generation is too optimistic about the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from tenfold.scale.law import Law
from tenfold.scale.points import number_of, read_rows, require_columns
from tenfold.scale.posterior import Member, correlation
from tenfold.spec.errors import TenfoldError

DRAWS = 4000
BELOW = 0.05  # share of the draws that may lie below the table's lowest loss
COLUMNS = ("loss", "value")


@dataclass(frozen=True)
class Worth:
    """The value of a model by its loss: linear between the rows, constant beyond them; `losses` rise and `values` fall."""

    losses: np.ndarray
    values: np.ndarray

    def __call__(self, loss: np.ndarray) -> np.ndarray:
        return np.interp(loss, self.losses, self.values)


@dataclass(frozen=True)
class Bending:
    """A bend at the ladder's end: its assumed probability (`chance`), and its size as a share of the loss per decade of compute."""

    chance: float = 0.0
    size: float = 0.0


def read_worth(path: Path) -> Worth:
    """Read a CSV file with the columns loss and value.

    Where measured values rise with the loss, isotonic regression averages them with their neighbours. Raises TenfoldError for a
    missing column, a row without two numbers, fewer than two losses, or values that do not fall.
    """
    header, rows = read_rows(path)
    require_columns(path, header, COLUMNS)
    table = np.array([[number_of(row[name]) for name in COLUMNS] for row in rows], float).reshape(-1, 2)
    for number, row in enumerate(table, start=2):
        if not np.isfinite(row).all():
            raise TenfoldError(f"{path}, row {number}: loss and value must both be numbers.")
    losses, where = np.unique(table[:, 0], return_inverse=True)
    counts = np.bincount(where, minlength=len(losses))
    values = np.bincount(where, table[:, 1], len(losses)) / np.maximum(counts, 1)
    if len(losses) >= 2:
        values = isotonic_regression(values, weights=counts, increasing=False).x
    if len(losses) < 2 or values[0] <= values[-1]:
        raise TenfoldError(f"{path} must have two or more losses, and a lower loss must have a higher value.")
    return Worth(losses, values)


def loss_draws(law: Law, params: Sequence[float], tokens: Sequence[float], *, count: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Joint draws [count, runs] of the losses of several runs; the marginal distribution of each is that of `Law.predict`."""
    u, v = np.log(np.array(params, float)) - law.data.log_n, np.log(np.array(tokens, float)) - law.data.log_d
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(count, [m.weight for m in law.members])
    drawn = np.concatenate([_of_member(law, m, u, v, n, rng) for m, n in zip(law.members, counts, strict=True) if n])
    middle = np.log([f.median for f in law.predict_all(params, tokens)])
    return rng.permutation(np.exp(middle + law.calibration.width * (drawn - middle)))


def _of_member(law: Law, m: Member, u: np.ndarray, v: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws [count, runs] of the log loss by a member (Student's t): the runs share the uncertainty of the parameters and the
    misfit, and have independent noise."""
    mean, slope, there, learnt = law.of_member(m, u, v)
    ratio, reach, _ = m.kernel
    misfit = ratio * np.outer(there, there) * correlation(u, v, u, v, reach) + np.diag(there**2) - learnt.T @ learnt
    normal = rng.multivariate_normal(np.zeros(len(u)), slope @ m.covariance @ slope.T + m.variance * misfit, count, method="eigh")
    return mean + normal * np.sqrt(law.freedom / rng.chisquare(law.freedom, (count, 1)))


@dataclass(frozen=True)
class Generations:
    """Generations 0, 1, ..., each compute-optimal: `flops`, `params`, `tokens` [generations], and joint draws of `loss` and
    `value` [draws, generations]."""

    flops: list[float]
    params: list[float]
    tokens: list[float]
    loss: np.ndarray
    value: np.ndarray

    def chances(self, step: float) -> list[float]:
        """For each generation from 1 on, the probability that its value exceeds the one before by `step` or more."""
        return [float(p) for p in (np.diff(self.value, axis=1) >= step).mean(0)]

    def to_dict(self, step: float) -> dict[str, Any]:
        """A JSON object: medians and 80 % intervals of each generation, and its chance of `step` (None for generation 0)."""
        chances = [None, *self.chances(step)]
        rows = [
            {"flops": c, "params": n, "tokens": d, "loss": _of(loss), "value": _of(value), "chance": chance}
            for c, n, d, loss, value, chance in zip(
                self.flops, self.params, self.tokens, self.loss.T, self.value.T, chances, strict=True
            )
        ]
        return {"step": step, "generations": rows}


def _of(draws: np.ndarray) -> dict[str, Any]:
    low, median, high = (float(x) for x in np.quantile(draws, (0.1, 0.5, 0.9)))
    return {"median": median, "interval_80": [low, high]}


def next_generations(
    law: Law, worth: Worth, *, generations: int = 3, bending: Bending = Bending(), count: int = DRAWS, seed: int = 0
) -> Generations:
    """Draw the losses and values of generation 0 and of the `generations` after it, each with ten times the compute of the last.

    Raises TenfoldError where the table ends above the losses that they may reach.
    """
    flops = [law.largest_flops * 10**k for k in range(generations + 1)]
    params, tokens = zip(*(law.optimum(c)[:2] for c in flops), strict=True)
    loss = loss_draws(law, params, tokens, count=count, seed=seed)
    bends = np.random.default_rng(seed + 1).random((count, 1)) < bending.chance
    loss = loss * np.where(bends, (1 + bending.size) ** np.arange(generations + 1), 1.0)
    low = float(np.quantile(loss.min(1), BELOW))
    if low < worth.losses[0]:
        raise TenfoldError(
            f"The table of values ends at a loss of {worth.losses[0]:.4g}, but the generations may reach {low:.4g}: add a row for "
            "that loss, or ask for fewer --generations."
        )
    return Generations(flops, list(params), list(tokens), loss, worth(loss))
