"""A test whether the points follow a law up to the largest compute or bend upwards, with its power."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tenfold.scale.bends import DRAWS, Bends, BestLaw, best_law, log_flops_of
from tenfold.scale.law import require_law
from tenfold.scale.points import Point, once
from tenfold.scale.posterior import KERNELS, Calibration, correlation, mixture_quantiles
from tenfold.spec.errors import TenfoldError

ALARM = 0.05  # significance level: the probability of an alarm where the law holds
SURE = 0.8  # power at which a bend is said to be shown
FEWEST = 8  # points
BEGINS = 1.0  # decades below the largest compute, where the bend begins whose power is stated
LEVELS = (80, 95)


@dataclass(frozen=True)
class Bend:
    """The likeliest bend: its `size` as a share of the loss, a decade of compute after it `begins` (FLOPs).

    `intervals` (percent -> ends) of the size are averaged over the places where it may begin; `begins_80` is the 80 % interval of
    the place.
    """

    size: float
    intervals: dict[int, tuple[float, float]]
    begins: float
    begins_80: tuple[float, float]


@dataclass(frozen=True)
class Limit:
    """The test of "the law holds" against "it bends upwards".

    `p` is the probability of as clear a bend by the noise of runs alone, `p_misfit` that by noise and the usual misfit of laws.
    `power` is the probability of an alarm for a bend of the size `asked` that begins a decade below the largest compute,
    `smallest` the size of such a bend that is shown with a probability of 80 % (None where it would have to double the loss).
    """

    form: str
    points: int
    noise: float
    p: float
    p_misfit: float
    bend: Bend
    asked: float
    power: float
    smallest: float | None

    @property
    def alarm(self) -> bool:
        return self.p <= ALARM

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        if not self.alarm:
            return "No bend upwards is seen."
        if self.p_misfit > ALARM or self.bend.size < 0:
            return (
                "The points deviate from every form of a law, but by no more than is usual, or mostly downwards: this is no limit."
            )
        return "The curve bends upwards: the law does not hold up to the largest compute."

    def chance(self, prior: float) -> float:
        """The posterior probability of a bend of the size `asked` that begins a decade below the largest compute: Bayes' rule with
        the probability `prior` before the test, and the test's outcome (alarm or not)."""
        where_bent, where_law = (self.power, ALARM) if self.alarm else (1 - self.power, 1 - ALARM)
        return prior * where_bent / (prior * where_bent + (1 - prior) * where_law)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "alarm": self.alarm, "verdict": self.verdict}


def limit_test(points: Sequence[Point], *, asked: float = 0.03, calibration: Calibration = Calibration()) -> Limit:
    """Test points for an upward bend; `asked` is the size of the bend (a share of the loss per decade) whose power is stated.

    Raises TenfoldError for fewer than 8 points, points that show no law, or too few computes or sizes to show a bend.
    """
    points = once(points)
    require_law(points, FEWEST)
    log_flops = log_flops_of(points)
    if len(np.unique(log_flops.round(1))) < 3:
        raise TenfoldError("A bend cannot be told from a law with runs at fewer than three computes: train rungs at three or more.")
    law = best_law(points)
    bends = Bends.of(law.slope(law.data.u, law.data.v), law.root_weight, log_flops)
    if bends.basis.shape[1] < 2 or not len(bends.breaks):
        raise TenfoldError("A bend cannot be told from a law by these points: train more sizes at each compute.")
    z = bends.seen(law.residual)
    noise, bend = _found(bends, z)
    power = bends.power(float(log_flops.max()) - BEGINS, ALARM)
    return Limit(
        form=law.form.name,
        points=len(points),
        noise=noise,
        p=_p(bends.noise_cosines, float(bends.cosine(z))),
        p_misfit=_p(bends.cosine(bends.noise + _misfits(law, bends, calibration) / noise), float(bends.cosine(z))),
        bend=bend,
        asked=asked,
        power=power(math.log1p(asked) / noise),
        smallest=_smallest(power, noise),
    )


def _found(bends: Bends, z: np.ndarray) -> tuple[float, Bend]:
    """The noise of a run, and the likeliest bend. Places are weighted by their likelihood; at each, the size is Student's t."""
    lengths, free = (bends.columns**2).sum(0), len(z) - 1
    size = z @ bends.columns / lengths
    squares = (z @ z - size**2 * lengths) / free
    weight = (squares / squares.min()) ** (-(free + 1) / 2)
    weight /= weight.sum()
    cuts = [0.5 + sign * level / 200 for level in LEVELS for sign in (-1, 1)]
    spread = np.sqrt(squares / lengths)
    ends = [math.expm1(float(end[0])) for end in mixture_quantiles(weight, size[:, None], spread[:, None], free, cuts)]
    best, reached = int(weight.argmax()), weight.cumsum()
    low, high = (float(10 ** bends.breaks[np.searchsorted(reached, cut).clip(max=len(reached) - 1)]) for cut in (0.1, 0.9))
    intervals = {level: (ends[2 * k], ends[2 * k + 1]) for k, level in enumerate(LEVELS)}
    return math.sqrt(squares[best]), Bend(math.expm1(size[best]), intervals, float(10 ** bends.breaks[best]), (low, high))


def _p(without: np.ndarray, found: float) -> float:
    """The p-value: the share of cosines of draws without a bend that are at least the one found."""
    return float((1 + (without >= found).sum()) / (1 + len(without)))


def _misfits(law: BestLaw, bends: Bends, calibration: Calibration) -> np.ndarray:
    """Draws [DRAWS, free] of the usual misfit of forms: smooth over (log N, log D), of a random size (`Calibration.misfit`)."""
    data, rng = law.data, np.random.default_rng(1)
    alike = correlation(data.u, data.v, data.u, data.v, min(reach for ratio, reach, _ in KERNELS if ratio))
    factor = np.linalg.cholesky(alike + 1e-8 * np.eye(len(data.y)))
    usual, spread = calibration.misfit
    sizes = usual * np.exp(spread * rng.standard_normal((DRAWS, 1)))
    return sizes * rng.standard_normal((DRAWS, len(data.y))) @ (bends.basis.T @ (np.sqrt(law.trusted)[:, None] * factor)).T


def _smallest(power: Callable[[float], float], noise: float) -> float | None:
    """The size of the bend whose power is `SURE`, by bisection; None where it would have to double the loss."""
    low, high = 0.0, math.log(2) / noise
    if power(high) < SURE:
        return None
    for _ in range(15):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if power(middle) >= SURE else (middle, high)
    return math.expm1(high * noise)
