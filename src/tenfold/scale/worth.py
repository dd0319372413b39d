"""From loss to worth: what the next generations are worth, and how likely each brings the next step.

A generation has ten times the compute of the one before; generation 0 is the best run of the law's largest compute. Losses are
drawn from the law's whole distribution, those of all generations together, since a law that is too hopeful of one is too hopeful
of the next.
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
BELOW = 0.05  # of the draws may reach below the table
COLUMNS = ("loss", "value")


@dataclass(frozen=True)
class Worth:
    """The value of a model by its loss: straight between rows, of which `losses` rise and `values` fall, and held beyond them."""

    losses: np.ndarray
    values: np.ndarray

    def __call__(self, loss: np.ndarray) -> np.ndarray:
        return np.interp(loss, self.losses, self.values)


@dataclass(frozen=True)
class Bending:
    """What is believed of a bend at the end of the ladder: its chance, and its size (a share of the loss, a decade on)."""

    chance: float = 0.0
    size: float = 0.0


def read_worth(path: Path) -> Worth:
    """A CSV file with the columns loss and value. A value that rises with the loss is levelled with its neighbours (isotonic
    regression), as measured ones need.

    Raises TenfoldError for a missing column, a row without two numbers, or values that do not fall over two losses or more.
    """
    header, rows = read_rows(path)
    require_columns(path, header, COLUMNS)
    table = np.array([[number_of(row[name]) for name in COLUMNS] for row in rows], float).reshape(-1, 2)
    for number, row in enumerate(table, start=2):
        if not np.isfinite(row).all():
            raise TenfoldError(f"{path}, row {number}: give a loss and a value, both numbers.")
    losses, where = np.unique(table[:, 0], return_inverse=True)
    counts = np.bincount(where, minlength=len(losses))
    values = np.bincount(where, table[:, 1], len(losses)) / np.maximum(counts, 1)
    if len(losses) >= 2:
        values = isotonic_regression(values, weights=counts, increasing=False).x
    if len(losses) < 2 or values[0] <= values[-1]:
        raise TenfoldError(f"{path} needs two or more losses, the lower of which are worth more.")
    return Worth(losses, values)


def loss_draws(law: Law, params: Sequence[float], tokens: Sequence[float], *, count: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Losses [count, runs] of several runs from the law's whole distribution, all runs of a draw together.

    Each run by itself is distributed as `Law.predict` says.
    """
    u, v = np.log(np.array(params, float)) - law.data.log_n, np.log(np.array(tokens, float)) - law.data.log_d
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(count, [m.weight for m in law.members])
    drawn = np.concatenate([_of_member(law, m, u, v, n, rng) for m, n in zip(law.members, counts, strict=True) if n])
    middle = np.log([f.median for f in law.predict_all(params, tokens)])
    return rng.permutation(np.exp(middle + law.calibration.width * (drawn - middle)))


def _of_member(law: Law, m: Member, u: np.ndarray, v: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws [count, runs] of Student's t: doubt about the parameters and the misfit are shared by the runs, noise is not."""
    mean, slope, there, learnt = law.of_member(m, u, v)
    ratio, reach, _ = m.kernel
    misfit = ratio * np.outer(there, there) * correlation(u, v, u, v, reach) + np.diag(there**2) - learnt.T @ learnt
    normal = rng.multivariate_normal(np.zeros(len(u)), slope @ m.covariance @ slope.T + m.variance * misfit, count, method="eigh")
    return mean + normal * np.sqrt(law.freedom / rng.chisquare(law.freedom, (count, 1)))


@dataclass(frozen=True)
class Generations:
    """Generations 0, 1, ..., each at the best size of its compute: `flops`, `params`, `tokens` [generations], and joint draws of
    `loss` and `value` [draws, generations]."""

    flops: list[float]
    params: list[float]
    tokens: list[float]
    loss: np.ndarray
    value: np.ndarray

    def chances(self, step: float) -> list[float]:
        """The probability, for each generation from the first on, that it is worth `step` more than the one before."""
        return [float(p) for p in (np.diff(self.value, axis=1) >= step).mean(0)]

    def to_dict(self, step: float) -> dict[str, Any]:
        """A JSON object: medians and 80 % intervals of each generation, and the chances of `step` (None of generation 0)."""
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
    """Draw what this generation and the next ones are worth, each at ten times the compute of the one before.

    Raises TenfoldError where the table says nothing of the losses that they may reach.
    """
    flops = [law.largest_flops * 10**k for k in range(generations + 1)]
    params, tokens = zip(*(law.optimum(c)[:2] for c in flops), strict=True)
    loss = loss_draws(law, params, tokens, count=count, seed=seed)
    bends = np.random.default_rng(seed + 1).random((count, 1)) < bending.chance
    loss = loss * np.where(bends, (1 + bending.size) ** np.arange(generations + 1), 1.0)
    low = float(np.quantile(loss.min(1), BELOW))
    if low < worth.losses[0]:
        raise TenfoldError(
            f"The table of worth ends at a loss of {worth.losses[0]:.4g} and the generations asked for may reach {low:.4g}: "
            "add a row for that, or ask for fewer generations."
        )
    return Generations(flops, list(params), list(tokens), loss, worth(loss))
