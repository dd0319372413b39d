"""The scaling law L(N, D): its forecasts with intervals, its compute-optimal size, and its coefficients.

A law is a mixture of fits (`posterior`), one for each functional form, kernel of the misfit, and asymptote (free or none). Each
fit forecasts a Student's t distribution, which covers the uncertainty of its parameters, the misfit of its form, and the noise
of one run.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from tenfold.scale.forms import FORMS, fit, starts
from tenfold.scale.points import Point, arrays, fingerprint, once
from tenfold.scale.posterior import (
    NOISE,
    Calibration,
    Data,
    Kernel,
    Member,
    Prior,
    Scale,
    correlation,
    first_fits,
    mixture_quantiles,
    posterior,
    trust,
    whitening,
)
from tenfold.spec.errors import TenfoldError
from tenfold.spec.laws import VERSION
from tenfold.spec.versions import require_version

# Prior of the asymptote E, the loss that no model goes below: (mean, standard deviation) of the logarithm of bits per byte.
# Large published models reach 0.3 on code to 0.7 on prose (Chinchilla, arXiv 2203.15556, table A5; from memory, not checked).
BITS_PER_BYTE = (float(np.log(0.35)), 0.3)
MINIMUM_POINTS = 6
MINIMUM_WITH_ASYMPTOTE = 4  # with a prior of E
LEVELS = (50, 80, 95)  # percent, of the intervals
NEGLIGIBLE = 1e-4  # a member of a lower weight is left out
TENABLE = 0.05  # with a lower weight of Chinchilla's form, free or tied, its coefficients mean nothing: Kaplan's is much likelier
DRAWS = 400  # of parameters, over all members


@dataclass(frozen=True)
class LossForecast:
    """A loss with its intervals (percent -> (low, high)) and its mean by each form, in the unit of the points' loss."""

    median: float
    intervals: dict[int, tuple[float, float]]
    by_form: dict[str, float]


class Coefficient(NamedTuple):
    """A coefficient of Chinchilla's form, its errors widened as the law's intervals are (`Calibration.width`).

    `identified` where the points alone, without any prior, determine it within a factor of 2, and `classic_fit` lies in the
    interval.
    """

    value: float
    standard_error: float
    interval_95: tuple[float, float]
    identified: bool


class MemberRuns(NamedTuple):
    """A member's forecast of n runs, given the points.

    `mean` [n] of the log loss, and its `slope` [n, P] in the member's parameters. `there` [n]: the runs' misfit and noise as
    multiples of those on the frontier (`Scale`). `learnt` [points, n]: the whitened covariance of the misfit at the points and
    at the runs, whose squares are what the points take off the variance.
    """

    mean: np.ndarray
    slope: np.ndarray
    there: np.ndarray
    learnt: np.ndarray


@dataclass(frozen=True)
class Law:
    """The fitted mixture, with the points it was fitted to.

    `trusted` [points] is how much each point counts (0 to 1), `frontier` the parameters of `Scale`, `flops_per_nd` the median of
    C / (N D) over the points, and `noise` the relative standard deviation of one run's loss.
    """

    points: list[Point]
    members: list[Member]
    trusted: np.ndarray
    frontier: np.ndarray
    calibration: Calibration
    flops_per_nd: float
    noise: float
    largest_flops: float
    n_points: int
    points_sha256: str
    seed: int = 0

    @cached_property
    def data(self) -> Data:
        return Data.of(self.points)

    @cached_property
    def scale(self) -> Scale:
        return Scale(self.frontier)

    @cached_property
    def _whitened(self) -> dict[Kernel, np.ndarray]:
        return {how: whitening(self.data, self.scale, self.trusted, how)[0] for how in {m.kernel for m in self.members}}

    def predict(self, params: float, tokens: float) -> LossForecast:
        """The loss of one run of `params` and `tokens`; its intervals include the noise of a single run."""
        return self.predict_all([params], [tokens])[0]

    def predict_all(self, params: Sequence[float], tokens: Sequence[float]) -> list[LossForecast]:
        """`predict` for several runs at once."""
        u, v = np.log(np.array(params, dtype=float)) - self.data.log_n, np.log(np.array(tokens, dtype=float)) - self.data.log_d
        parts = [self._part(m, u, v) for m in self.members]
        weight, mean, spread = (np.array(x) for x in zip(*parts, strict=True))
        cuts = [0.5, *(0.5 + sign * level / 200 for level in LEVELS for sign in (-1, 1))]
        middle, *ends = mixture_quantiles(weight, mean, spread, self.freedom, cuts)
        found = []
        for i, centre in enumerate(middle):
            low_high = [float(np.exp(centre + self.calibration.width * (end[i] - centre))) for end in ends]
            intervals = {level: (low_high[2 * k], low_high[2 * k + 1]) for k, level in enumerate(LEVELS)}
            by_form = {name: self._of_form(name, weight, mean[:, i]) for name in dict.fromkeys(m.form for m in self.members)}
            found.append(LossForecast(float(np.exp(centre)), intervals, by_form))
        return found

    @property
    def freedom(self) -> float:
        """Degrees of freedom of every member's Student's t."""
        return max(self.n_points - 5, 0) + NOISE[1]

    def _of_form(self, name: str, weight: np.ndarray, mean: np.ndarray) -> float:
        chosen = np.array([m.form == name for m in self.members])
        return float(np.exp(np.average(mean[chosen], weights=weight[chosen])))

    def of_member(self, m: Member, u: np.ndarray, v: np.ndarray) -> "MemberRuns":
        """A member's forecast of runs at u = log N and v = log D (centred as in `Data`), given the points."""
        data, form, (ratio, reach, off) = self.data, FORMS[m.form], m.kernel
        there = self.scale(u, v, off)
        covariance = ratio * np.outer(self.scale(data.u, data.v, off), there) * correlation(data.u, data.v, u, v, reach)
        known = self._whitened[m.kernel]
        learnt = known @ covariance
        at_points, slope_at_points = form.value(m.theta, data.u, data.v)
        value, slope = form.value(m.theta, u, v)
        mean = value - learnt.T @ (known @ (at_points - data.y))
        return MemberRuns(mean, slope - learnt.T @ (known @ slope_at_points), there, learnt)

    def _part(self, m: Member, u: np.ndarray, v: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """A member's weight, and the mean [n] and the scale [n] of the log loss of runs at (u, v), given the points."""
        mean, slope, there, learnt = self.of_member(m, u, v)
        of_parameters = np.einsum("np,pq,nq->n", slope, m.covariance, slope)
        of_run = m.variance * (there**2 * (1 + m.kernel[0]) - (learnt**2).sum(0))
        return m.weight, mean, np.sqrt(of_parameters + np.maximum(of_run, 0.0))

    def optimum(self, flops: float) -> tuple[float, float, dict[int, tuple[float, float]]]:
        """Compute-optimal (params, tokens) at `flops`, and intervals of params over the mixture."""
        log_n = np.linspace(-12, 12, 481) + 0.5 * (np.log(flops / self.flops_per_nd) + self.data.log_n - self.data.log_d)
        u = log_n - self.data.log_n
        v = np.log(flops / self.flops_per_nd) - log_n - self.data.log_d
        rng = np.random.default_rng(self.seed)
        best = []
        for m in self.members:
            theta = _draw(rng, m, max(1, round(DRAWS * m.weight)))
            best.append(log_n[FORMS[m.form].value(theta, u, v)[0].argmin(-1)])
        modes = [log_n[FORMS[m.form].value(m.theta, u, v)[0].argmin(-1)] for m in self.members]
        n = float(np.exp(np.average(modes, weights=[m.weight for m in self.members])))
        found = np.concatenate(best)
        intervals = {
            level: tuple(float(x) for x in np.exp(np.quantile(found, [0.5 - level / 200, 0.5 + level / 200]))) for level in LEVELS
        }
        return n, flops / self.flops_per_nd / n, intervals  # type: ignore[return-value]

    def coefficients(self) -> dict[str, Coefficient]:
        """The coefficients of Chinchilla's form for N and D in plain numbers, over all members of that form."""
        members = [m for m in self.members if m.form == "chinchilla"]
        tenable = sum(m.weight for m in self.members if m.form in ("chinchilla", "tied")) >= TENABLE
        share = sum(m.weight for m in members)
        rng = np.random.default_rng(self.seed)
        drawn = self._real(np.concatenate([_draw(rng, m, max(1, round(10 * DRAWS * m.weight / share))) for m in members]))
        top = max(members, key=lambda m: m.weight)
        centre, alone, plain = self._real(top.theta[None]), self._alone(top), classic_fit(self.points)
        found = {}
        for name, draws in drawn.items():
            middle = float(np.median(draws))
            low, below, above, high = (
                middle * (float(x) / middle) ** self.calibration.width for x in np.quantile(draws, [0.025, 0.16, 0.84, 0.975])
            )
            identified = tenable and alone[name] <= np.log(2) and above <= 4 * below and low <= plain[name] <= high
            found[name] = Coefficient(float(centre[name][0]), (above - below) / 2, (low, high), bool(identified))
        return found

    def _real(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """E, A, B, alpha and beta from the fit's centred, logarithmic parameters [draws, 5]."""
        alpha, beta = np.exp(theta[:, 3]), np.exp(theta[:, 4])
        a, b = theta[:, 1] + alpha * self.data.log_n, theta[:, 2] + beta * self.data.log_d
        return {"E": np.exp(theta[:, 0]), "A": np.exp(a), "B": np.exp(b), "alpha": alpha, "beta": beta}

    def _alone(self, m: Member) -> dict[str, float]:
        """The standard deviation of each coefficient's logarithm from the curvature of the likelihood, without any prior."""
        slope = self._whitened[m.kernel] @ FORMS[m.form].value(m.theta, self.data.u, self.data.v)[1]
        covariance = np.linalg.inv(slope.T @ slope / m.variance + 1e-6 * np.eye(5))
        to_real = np.eye(5)
        to_real[1, 3], to_real[2, 4] = np.exp(m.theta[3]) * self.data.log_n, np.exp(m.theta[4]) * self.data.log_d
        spread = np.sqrt(np.diag(to_real @ covariance @ to_real.T))
        return dict(zip(("E", "A", "B", "alpha", "beta"), (float(s) for s in spread), strict=True))

    def optima(self, around: float, params: Callable[[float], float]) -> list[tuple[float, float]]:
        """(FLOPs, best `params` for them) from a tenth of `around` to 1,000 times it: the table that `spec.laws` reads."""
        return [(flops, params(flops)) for flops in (around * 10 ** (half / 2) for half in range(-2, 7))]

    def to_dict(self) -> dict[str, Any]:
        """The law as a JSON object; `from_dict` and `spec.laws` read it."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain["points"] = np.array(arrays(self.points)).T.tolist()
        plain["members"] = [{**asdict(m), "theta": m.theta.tolist(), "covariance": m.covariance.tolist()} for m in self.members]
        plain |= {"trusted": self.trusted.tolist(), "frontier": self.frontier.tolist(), "calibration": asdict(self.calibration)}
        return {"version": VERSION, **plain, "optimum": self.optima(self.largest_flops, lambda flops: self.optimum(flops)[0])}

    @staticmethod
    def from_dict(plain: dict[str, Any]) -> "Law":
        """The law of a JSON object. Raises TenfoldError for one of another version."""
        require_version(plain.get("version", 1), (VERSION,), "The law", "fit it again by `tenfold law fit`")
        known = {name: plain[name] for name in Law.__dataclass_fields__}
        calibration = Calibration(**{**plain["calibration"], "misfit": tuple(plain["calibration"]["misfit"])})
        made = {"points": [Point(*row) for row in plain["points"]], "members": [_member(m) for m in plain["members"]]}
        made |= {"trusted": np.array(plain["trusted"]), "frontier": np.array(plain["frontier"]), "calibration": calibration}
        return Law(**(known | made))


def _member(plain: dict[str, Any]) -> Member:
    arrays_of = {name: np.array(plain[name]) for name in ("theta", "covariance")}
    return Member(**{**plain, **arrays_of, "kernel": tuple(plain["kernel"])})


def _draw(rng: np.random.Generator, m: Member, count: int) -> np.ndarray:
    """Draws of a member's parameters [count, P]; the first is the mode."""
    drawn = rng.multivariate_normal(m.theta, m.covariance, size=count, method="eigh")
    drawn[0] = m.theta
    return drawn


def fit_law(
    points: Sequence[Point],
    *,
    asymptote: tuple[float, float] | None = None,
    seed: int = 0,
    calibration: Calibration = Calibration(),
) -> Law:
    """Fit the mixture. `asymptote` is the prior of E: (mean, standard deviation) of its logarithm.

    Equal points count once, and the result does not depend on their order. Raises TenfoldError for too few points, too few
    budgets, losses that are no positive numbers, or losses that do not fall with the compute.
    """
    points = once(points)
    require_law(points, minimum_points(asymptote))
    n, d, c, _ = arrays(points)
    data = Data.of(points)
    first = first_fits(data, asymptote)
    scale = Scale(first["chinchilla"])
    trusted = trust(data, first, scale)
    prior = Prior.of_points(data, asymptote)
    members = _worth_keeping(posterior(data, scale, trusted, first, prior, calibration.misfit))
    noise = float(np.sqrt(np.average([m.variance for m in members], weights=[m.weight for m in members])))
    return Law(
        points=points,
        members=members,
        trusted=trusted,
        frontier=first["chinchilla"],
        calibration=calibration,
        flops_per_nd=float(np.exp(np.median(np.log(c / n / d)))),
        noise=noise,
        largest_flops=float(c.max()),
        n_points=len(points),
        points_sha256=fingerprint(points),
        seed=seed,
    )


def _worth_keeping(members: list[Member]) -> list[Member]:
    """The members whose weight is not negligible, and the likeliest of each form; their weights sum to 1."""
    best = [max((m for m in members if m.form == name), key=lambda m: m.weight) for name in FORMS]
    kept = [replace(m, weight=max(m.weight, 1e-9)) for m in members if m.weight > NEGLIGIBLE or any(m is one for one in best)]
    whole = sum(m.weight for m in kept)
    return [replace(m, weight=m.weight / whole) for m in kept]


def minimum_points(asymptote: tuple[float, float] | None) -> int:
    """How many points a law needs, with a prior of the asymptote or without (None)."""
    return MINIMUM_POINTS if asymptote is None else MINIMUM_WITH_ASYMPTOTE


def require_law(points: Sequence[Point], minimum: int) -> None:
    """Raises TenfoldError for too few points, too few budgets, losses that are no positive numbers, or losses that do not fall."""
    if len(points) < minimum:
        raise TenfoldError(
            f"A law needs at least {minimum} different points at two or more budgets; there are {len(points)}: train more rungs."
        )
    _, _, c, loss = arrays(points)
    if not (np.isfinite(loss).all() and (loss > 0).all()):
        raise TenfoldError("A law can only be fitted to losses that are positive numbers: leave the others out.")
    if c.max() / c.min() < 1.5:
        raise TenfoldError("All points have nearly the same compute: a law needs budgets that differ by half or more.")
    if loss.max() < 1.0001 * loss.min():
        raise TenfoldError("All losses are the same, so these points show no law: is the column of the loss the right one?")
    middle = np.sqrt(c.max() * c.min())
    if loss[c > middle].min() >= loss[c <= middle].min():
        raise TenfoldError(
            "The lowest loss of the larger computes is not below that of the smaller ones, so these points show no law: check that "
            "the column is a loss, and that the largest runs were trained to their end."
        )


def classic_fit(points: Sequence[Point]) -> dict[str, float]:
    """The coefficients of E + A / N^alpha + B / D^beta as Besiroglu et al. (arXiv 2404.10102) refit them: a Huber loss of log L,
    all points of equal weight, no prior."""
    n, d, _, loss = arrays(once(points))
    u, v = np.log(n) - np.log(n).mean(), np.log(d) - np.log(d).mean()
    form, first = FORMS["chinchilla"], starts(FORMS["chinchilla"], np.log(loss))
    found, value = fit(form, u, v, np.log(loss), np.ones((len(first), len(loss))), first)
    theta = found[value.argmin()]
    alpha, beta = np.exp(theta[3:])
    a, b = np.exp(theta[1] + alpha * np.log(n).mean()), np.exp(theta[2] + beta * np.log(d).mean())
    return {"E": float(np.exp(theta[0])), "A": float(a), "B": float(b), "alpha": float(alpha), "beta": float(beta)}
