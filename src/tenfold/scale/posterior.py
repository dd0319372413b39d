"""The posterior of each form's parameters given the points, with a misfit that is smooth over (N, D).

No functional form is exact. The log loss is modelled as log f(N, D) + misfit + noise: the misfit is a Gaussian process over
(log N, log D) (Kennedy and O'Hagan, 2001), the noise is independent from run to run. Both grow with the excess of a run's loss
over the best of equal compute, since a run far from the frontier follows no form closely. Parameters are found by
Levenberg-Marquardt on whitened residuals, and each fit is weighted by its evidence (Laplace's approximation).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.linalg import solve_triangular

from tenfold.scale.forms import FORMS, Form, fit, precision, starts
from tenfold.scale.points import Point, arrays

ROBUST = 2.5  # points with a larger residual, in standard deviations, count less: points read off figures have outliers
NOISE = (0.002, 2.0)  # prior of one run's relative noise, and the number of runs that the prior counts for
ASYMPTOTE_SHARE = (np.log(0.5), 1.0)  # default prior of E: (mean, standard deviation) of log(E / lowest loss)
SHIFT = np.linspace(-8, 8, 161)  # grid of changes of log N at equal compute, for the search of the best size
REDUCIBLE = 2.0  # prior standard deviation of the logarithm of the terms of N and D at the points' centre: a factor of 7
ROUNDS = 3  # alternations between fitting the parameters and the noise


@dataclass(frozen=True)
class Calibration:
    """Constants for all ladders, found on the public ones by leave-one-out (`bench.scale.ladders`).

    `misfit` is the prior of the misfit's standard deviation in log loss: (median, standard deviation of its logarithm). `width`
    multiplies the width of all intervals, in log loss.
    """

    misfit: tuple[float, float] = (0.01, 1.0)
    width: float = 0.85


# (variance of the misfit over that of the noise; length scale of the misfit in log N and log D; excess in log loss over the best
# run of equal compute at which both have twice the standard deviation)
KERNELS = tuple(
    (ratio, reach, off)
    for off in (0.02, 0.05)
    for ratio, reach in ((0.0, 1.0), *((ratio, reach) for reach in (2.0, 6.0) for ratio in (3.0, 30.0, 300.0)))
)


Kernel = tuple[float, float, float]


@dataclass(frozen=True)
class Data:
    """Points as the fit uses them: u = log N and v = log D [n] minus their means `log_n` and `log_d`, and y, the log loss [n]."""

    u: np.ndarray
    v: np.ndarray
    y: np.ndarray
    log_n: float
    log_d: float

    @staticmethod
    def of(points: Sequence[Point]) -> "Data":
        n, d, _, loss = np.log(arrays(points))
        return Data(n - n.mean(), d - d.mean(), loss, float(n.mean()), float(d.mean()))


@dataclass(frozen=True)
class Scale:
    """The factor [n] by which a run's misfit and noise exceed those of the best run of equal compute.

    The excess is found by Chinchilla's form with the parameters `frontier` [5].
    """

    frontier: np.ndarray

    def __call__(self, u: np.ndarray, v: np.ndarray, off_frontier: float) -> np.ndarray:
        value = FORMS["chinchilla"].value
        here = value(self.frontier, u, v)[0]
        along = value(self.frontier, (u[:, None] + SHIFT).ravel(), (v[:, None] - SHIFT).ravel())[0].reshape(len(u), -1)
        return 1 + np.maximum(0.0, here - along.min(1)) / off_frontier


@dataclass(frozen=True)
class Member:
    """One fit: `theta` [P] with its `covariance` [P, P], the `variance` of the noise in log loss, and its `weight` (0 to 1)."""

    form: str
    kernel: Kernel
    weight: float
    theta: np.ndarray
    covariance: np.ndarray
    variance: float


def mixture_quantiles(
    weight: np.ndarray, mean: np.ndarray, spread: np.ndarray, freedom: float, cuts: Sequence[float]
) -> list[np.ndarray]:
    """Quantiles of mixtures of Student's t with `freedom` degrees, by bisection: an array [runs] for each of `cuts` (0 to 1).

    `weight` [members], `mean` and `spread` (scale) [members, runs].
    """
    found = []
    for cut in cuts:
        low, high = (mean - 60 * spread).min(0), (mean + 60 * spread).max(0)
        for _ in range(48):
            middle = 0.5 * (low + high)
            below = weight @ stats.t.cdf((middle - mean) / spread, freedom) < cut
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        found.append(0.5 * (low + high))
    return found


def correlation(u: np.ndarray, v: np.ndarray, u2: np.ndarray, v2: np.ndarray, reach: float) -> np.ndarray:
    """Correlation of the misfit between two sets of runs, [first, second]."""
    return np.exp(-0.5 * ((u[:, None] - u2) ** 2 + (v[:, None] - v2) ** 2) / reach**2)


def whitening(data: Data, scale: Scale, trusted: np.ndarray, how: Kernel) -> tuple[np.ndarray, float]:
    """The matrix [n, n] that whitens misfit and noise at the points, up to the noise's variance, and the log determinant of their
    covariance divided by that variance."""
    ratio, reach, off = how
    here = scale(data.u, data.v, off)
    alike = np.diag(1 / trusted) + ratio * correlation(data.u, data.v, data.u, data.v, reach)
    factor = np.linalg.cholesky(np.outer(here, here) * alike)
    return solve_triangular(factor, np.eye(len(here)), lower=True), 2 * float(np.log(np.diag(factor)).sum())


def first_fits(data: Data, asymptote: tuple[float, float] | None) -> dict[str, np.ndarray]:
    """A robust fit of each form to all points with equal weights, the best of many starts: form -> theta [P]."""
    found = {}
    for name, form in FORMS.items():
        first = starts(form, data.y)
        even = np.ones((len(first), len(data.y)))
        theta, value = fit(
            form, data.u, data.v, data.y, even, first, delta=0.005, prior=precision(form, asymptote), prior_weight=1e-4
        )
        found[name] = theta[value.argmin()]
    return found


def trust(data: Data, first: dict[str, np.ndarray], scale: Scale) -> np.ndarray:
    """How much each point counts [n]: 1, or less where its residual from the best form is much larger than the median."""
    here = scale(data.u, data.v, KERNELS[-1][2])
    residual = min((np.abs(FORMS[name].value(t, data.u, data.v)[0] - data.y) / here for name, t in first.items()), key=np.median)
    return np.minimum(1.0, ROBUST * max(1.4826 * float(np.median(residual)), NOISE[0] / 3) / np.maximum(residual, 1e-12))


def posterior(
    data: Data, scale: Scale, trusted: np.ndarray, first: dict[str, np.ndarray], prior: "Prior", usual: tuple[float, float]
) -> list[Member]:
    """A member for each form, kernel, and asymptote (free or none), weighted by its evidence.

    `usual` is the prior of the misfit's size (`Calibration.misfit`), `first` the starts of the fits.
    """
    found = [whitening(data, scale, trusted, how) for how in KERNELS]
    whiten = np.array([matrix for matrix, _ in found])
    members, evidence = [], []
    for name, form in FORMS.items():
        for centre, inverse, mass in prior.of(form):
            start = np.tile(np.where(inverse > 1e3, centre, first[name]), (len(KERNELS), 1))
            theta, variance, covariance, value = _laplace(form, data, whiten, start, centre, inverse)
            for i, how in enumerate(KERNELS):
                members.append(Member(name, how, 0.0, theta[i], covariance[i], float(variance[i])))
                evidence.append(value[i] - 0.5 * found[i][1] + np.log(mass) + _log_prior(how[0] * variance[i], usual))
    weights = np.exp(np.array(evidence) - max(evidence))
    weights /= weights.sum()
    return [Member(m.form, m.kernel, float(w), m.theta, m.covariance, m.variance) for m, w in zip(members, weights, strict=True)]


def _log_prior(variance: float, usual: tuple[float, float]) -> float:
    """The log prior of a misfit of this variance; a constant for no misfit."""
    return -0.5 * ((np.log(max(variance, 1e-12)) / 2 - np.log(usual[0])) / usual[1]) ** 2 if variance else -2.0


@dataclass(frozen=True)
class Prior:
    """The prior of the parameters: log E (mean, standard deviation), whether E may be zero, and the mean of the logarithm of each
    of the other terms at the centre of the points (`reducible`)."""

    asymptote: tuple[float, float]
    may_vanish: bool
    reducible: float

    @staticmethod
    def of_points(data: Data, asymptote: tuple[float, float] | None) -> "Prior":
        lowest, middle = float(data.y.min()), float(np.median(data.y))
        return Prior(asymptote or (ASYMPTOTE_SHARE[0] + lowest, ASYMPTOTE_SHARE[1]), asymptote is None, middle - np.log(4))

    def of(self, form: Form) -> list[tuple[np.ndarray, np.ndarray, float]]:
        """The prior for a form as a mixture of normals: (centre [P], 1 / variance [P], weight) of each."""
        centre, inverse = precision(form, self.asymptote)
        power = 4.0 if form.name == "kaplan" else 1.0  # Kaplan's terms are raised to beta, about 1/4
        centre[1:3], inverse[1:3] = power * self.reducible, (power * REDUCIBLE) ** -2
        if not self.may_vanish:
            return [(centre, inverse, 1.0)]
        none, fixed = centre.copy(), inverse.copy()
        none[0], fixed[0] = -30.0, 1e6
        return [(centre, inverse, 0.8), (none, fixed, 0.2)]


def _laplace(form: Form, data: Data, whiten: np.ndarray, theta: np.ndarray, centre: np.ndarray, inverse: np.ndarray):
    """Laplace's approximation for each whitening [K, n, n]: theta [K, P] at the mode, the noise's variance [K], the covariance
    [K, P, P], and the log evidence [K], to which the caller adds the term of the whitening's determinant."""
    count, known = len(data.y), NOISE[1]
    variance = np.full(len(theta), 0.005**2)
    for number in range(ROUNDS):
        theta = _minimise(form, data, whiten, theta, centre, inverse, variance, iterations=40 if number == 0 else 15)
        value, jacobian = form.value(theta, data.u, data.v)
        residual = (whiten @ (value - data.y)[..., None])[..., 0]
        squares = (residual**2).sum(-1)
        variance = (squares + known * NOISE[0] ** 2) / (max(count - theta.shape[1], 0) + known)
    slope = whiten @ jacobian
    hessian = slope.transpose(0, 2, 1) @ slope / variance[:, None, None] + np.diag(inverse)
    pull = (inverse * (theta - centre) ** 2).sum(-1) - np.log(np.maximum(inverse, 1e-12)).sum()
    evidence = -0.5 * (squares / variance + count * np.log(variance) + pull + np.linalg.slogdet(hessian)[1])
    evidence -= 0.5 * known * (NOISE[0] ** 2 / variance + np.log(variance))
    return theta, variance, np.linalg.inv(hessian), evidence


def _minimise(
    form: Form, data: Data, whiten: np.ndarray, theta: np.ndarray, centre: np.ndarray, inverse: np.ndarray, variance: np.ndarray,
    *, iterations: int,
) -> np.ndarray:  # fmt: skip
    """Levenberg-Marquardt for all whitenings at once."""

    def objective(t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        value, jacobian = form.value(t, data.u, data.v)
        r = (whiten @ (value - data.y)[..., None])[..., 0]
        return (r**2).sum(-1) / variance + (inverse * (t - centre) ** 2).sum(-1), r, jacobian

    damping, diagonal = np.full(len(theta), 1e-2), np.arange(theta.shape[1])
    best, r, jacobian = objective(theta)
    for _ in range(iterations):
        slope = whiten @ jacobian
        gradient = (r[:, None] @ slope)[:, 0] / variance[:, None] + inverse * (theta - centre)
        hessian = slope.transpose(0, 2, 1) @ slope / variance[:, None, None] + np.diag(inverse)
        hessian[:, diagonal, diagonal] *= 1 + damping[:, None]
        hessian[:, diagonal, diagonal] += 1e-9
        trial = theta - np.clip(np.linalg.solve(hessian, gradient[..., None])[..., 0], -1.0, 1.0)
        value, trial_r, trial_jacobian = objective(trial)
        better = value < best
        done = bool((np.abs(best - value) < 1e-5).all())
        theta = np.where(better[:, None], trial, theta)
        best, r = np.where(better, value, best), np.where(better[:, None], trial_r, r)
        jacobian = np.where(better[:, None, None], trial_jacobian, jacobian)
        damping = np.where(better, damping * 0.3, damping * 5).clip(1e-9, 1e8)
        if done:
            break
    return theta
