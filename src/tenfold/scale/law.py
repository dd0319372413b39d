"""The law L(N, D), fitted as an ensemble, and what it forecasts with intervals.

An ensemble has a member for each functional form and each weighting of the points by their compute. Members are
weighted by how well they predicted the upper part of the points from the lower part, so that the choice is made by
the points given and by nothing else. The intervals come from a bootstrap over runs within every member, from the
members' disagreement, and from what the same procedure got wrong on the points' own upper parts.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tenfold.scale.forms import FORMS, Form, fit, precision, starts
from tenfold.scale.points import Point, arrays, fingerprint
from tenfold.spec.errors import TenfoldError
from tenfold.spec.laws import VERSION
from tenfold.spec.versions import require_version

COMPUTE_WEIGHTS = (0.25, 0.5, 1.0)  # a point of a tenth of the compute counts 10^-w
RATIO_DECADES = 1.5
AS_MANY = 20  # points that a member's likelihood counts at most
HUBER = 0.5  # residuals past so many times the noise count linearly: points read off figures have outliers
CUTS = (1.5, 3.0, 10.0)  # inner back-tests predict what lies above such a part of the largest compute
USUAL_DRIFT = 0.01  # relative error at ten times the compute of plain refits of published points; a ladder shows few of its own
# What is known of the loss that no model goes below, before any point: (mean, standard deviation) of the logarithm of bits
# per byte. Large published models reach 0.3 on code to 0.7 on prose (recalled: Chinchilla, arXiv 2203.15556, table A5).
BITS_PER_BYTE = (float(np.log(0.35)), 0.3)
MINIMUM_POINTS = 6
MINIMUM_WITH_ASYMPTOTE = 4  # where something is known of E beforehand
LEVELS = (50, 80, 95)
DRAWS = 4000


@dataclass(frozen=True)
class Member:
    """One fit: `theta` [bootstrap, P], the first row that of all points; `weight` its share in the ensemble."""

    form: str
    compute_weight: float
    weight: float
    inner_error: float
    theta: np.ndarray


@dataclass(frozen=True)
class LossForecast:
    """A loss with its intervals (percent -> (low, high)), in the unit of the points' loss."""

    median: float
    intervals: dict[int, tuple[float, float]]
    by_form: dict[str, float]


@dataclass(frozen=True)
class Law:
    """The fitted ensemble. `flops_per_nd` is the points' own C / (N D); `noise` the relative spread of one run."""

    members: list[Member]
    log_n: float
    log_d: float
    flops_per_nd: float
    noise: float
    drift_per_decade: float
    largest_flops: float
    n_points: int
    points_sha256: str
    seed: int = 0
    loss_range: tuple[float, float] = field(default=(0.0, 0.0))

    def predict(self, params: float, tokens: float) -> LossForecast:
        """The loss of one run of `params` and `tokens`, with the noise that one run has."""
        u, v = np.array([np.log(params) - self.log_n]), np.array([np.log(tokens) - self.log_d])
        rng = np.random.default_rng(self.seed)
        centre = float(np.exp(sum(m.weight * _value(m, u, v)[0] for m in self.members)))
        draws = np.concatenate(
            [rng.choice(_value(m, u, v), size=max(1, round(DRAWS * m.weight))) for m in self.members if round(DRAWS * m.weight)]
        )
        # A bootstrap with few runs has outliers that say nothing about the world: they are drawn in.
        middle = np.median(draws)
        draws = np.clip(draws, middle - 0.5, middle + 0.5)
        decades = max(0.0, np.log10(self.flops_per_nd * params * tokens / self.largest_flops))
        spread = np.hypot(self.noise, self.drift_per_decade * decades)
        draws = draws - middle + np.log(centre) + spread * rng.standard_t(5, size=len(draws))
        intervals = {}
        for level in LEVELS:
            low, high = np.quantile(draws, [0.5 - level / 200, 0.5 + level / 200])
            intervals[level] = (float(np.exp(low)), float(np.exp(high)))
        by_form = {
            name: float(np.exp(_mean([(m.weight, m.theta[0]) for m in self.members if m.form == name], FORMS[name], u, v)))
            for name in {m.form for m in self.members}
        }
        return LossForecast(centre, intervals, by_form)

    def optimum(self, flops: float) -> tuple[float, float, dict[int, tuple[float, float]]]:
        """Compute-optimal (params, tokens) at `flops`, and intervals of params over the ensemble."""
        log_n = np.linspace(-12, 12, 481) + 0.5 * (np.log(flops / self.flops_per_nd) + self.log_n - self.log_d)
        u = log_n - self.log_n
        v = np.log(flops / self.flops_per_nd) - log_n - self.log_d
        best: list[np.ndarray] = []
        for m in self.members:
            values, _ = FORMS[m.form].value(m.theta, u, v)
            count = max(1, round(400 * m.weight))
            best.append(np.resize(log_n[values.argmin(-1)], count))
        found = np.concatenate(best)
        n = float(np.exp(np.median(found)))
        intervals = {
            level: tuple(float(x) for x in np.exp(np.quantile(found, [0.5 - level / 200, 0.5 + level / 200]))) for level in LEVELS
        }
        return n, flops / self.flops_per_nd / n, intervals  # type: ignore[return-value]

    def coefficients(self, form: str = "chinchilla") -> dict[str, tuple[float, float]]:
        """Each coefficient of the best-weighted member of `form` with its bootstrap standard error, in real units."""
        member = max((m for m in self.members if m.form == form), key=lambda m: m.weight)
        theta = member.theta
        alpha, beta = np.exp(theta[:, 3]), np.exp(theta[:, -1])
        real = {
            "E": np.exp(theta[:, 0]),
            "A": np.exp(theta[:, 1] + alpha * self.log_n),
            "B": np.exp(theta[:, 2] + beta * self.log_d),
            "alpha": alpha,
            "beta": beta,
        }
        return {name: (float(x[0]), _spread(x)) for name, x in real.items()}

    def optima(self, around: float, params: Callable[[float], float]) -> list[tuple[float, float]]:
        """(FLOPs, best `params` for them) from a tenth of `around` to 1,000 times it: what `spec.laws` reads of a law."""
        return [(flops, params(flops)) for flops in (around * 10 ** (half / 2) for half in range(-2, 7))]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object that `from_dict` and `spec.laws` read."""
        plain = asdict(self)
        plain["members"] = [{**asdict(m), "theta": m.theta.tolist()} for m in self.members]
        return {"version": VERSION, **plain, "optimum": self.optima(self.largest_flops, lambda flops: self.optimum(flops)[0])}

    @staticmethod
    def from_dict(plain: dict[str, Any]) -> "Law":
        require_version(plain.get("version", 1), (1, VERSION), "The law", "fit it again by `tenfold law fit`")
        members = [Member(**{**m, "theta": np.array(m["theta"])}) for m in plain["members"]]
        known = {name: plain[name] for name in Law.__dataclass_fields__ if name in plain}
        return Law(**{**known, "members": members, "loss_range": tuple(plain["loss_range"])})


@dataclass(frozen=True)
class Fit:
    """How every member is fitted: the prior of log E (mean, standard deviation) if any, and the noise of one run."""

    asymptote: tuple[float, float] | None
    noise: float

    def best(self, form: Form, u: np.ndarray, v: np.ndarray, log_loss: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, float]:
        """theta [P] of the lowest objective over all starts, and how likely it makes the points: up to `AS_MANY` of them
        count, since what is wrong with a form is wrong at all points alike."""
        first = starts(form, log_loss)
        theta, value = fit(form, u, v, log_loss, np.tile(weight, (len(first), 1)), first, **self.options(form, len(u)))
        scale = max(1e-3, HUBER * self.noise) / self.noise**2
        return theta[value.argmin()], float(np.exp(-min(len(u), AS_MANY) * scale * value.min()))

    def options(self, form: Form, count: int) -> dict[str, Any]:
        """Huber's threshold, and the weight at which the prior counts as in Bayes' rule beside `count` points."""
        delta = max(1e-3, HUBER * self.noise)
        return {"delta": delta, "prior": precision(form, self.asymptote), "prior_weight": self.noise**2 / (count * delta)}


def fit_law(points: Sequence[Point], *, asymptote: tuple[float, float] | None = None, seed: int = 0, bootstrap: int = 100) -> Law:
    """Fit the ensemble. `asymptote` is what is known of E beforehand: (mean, standard deviation) of its logarithm.

    Raises TenfoldError for too few points, too few budgets or impossible losses.
    """
    n, d, c, loss = arrays(points)
    _check(points, c, loss, minimum_points(asymptote))
    u, v = np.log(n) - np.log(n).mean(), np.log(d) - np.log(d).mean()
    even = _weight(n, d, c, 0.0)
    first = Fit(asymptote, 0.003)
    how = Fit(asymptote, min(_noise(form.value(first.best(form, u, v, np.log(loss), even)[0], u, v)[0] - np.log(loss), even)
                             for form in FORMS.values()))  # fmt: skip
    members, residual = [], []
    errors, shares = {}, {}
    best: dict[tuple[str, float], np.ndarray] = {}
    inner: dict[tuple[str, float], list[np.ndarray]] = {}
    for name, form in FORMS.items():
        for power in COMPUTE_WEIGHTS:
            inner[name, power] = list(_inner_errors(how, form, power, n, d, c, loss))
            sizes = [np.abs(e).mean() for e in inner[name, power]]
            errors[name, power] = float(np.mean(sizes)) if sizes else 1.0
            best[name, power], likelihood = how.best(form, u, v, np.log(loss), _weight(n, d, c, power))
            shares[name, power] = likelihood / errors[name, power] ** 2
    total = sum(shares.values())
    shares = {key: share / total for key, share in shares.items()}
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(points), np.full(len(points), 1 / len(points)), size=bootstrap).astype(float)
    for (name, power), theta in best.items():
        form = FORMS[name]
        start = np.tile(theta, (bootstrap, 1))
        weight = draws * _weight(n, d, c, power) + 1e-9
        redrawn, _ = fit(form, u, v, np.log(loss), weight, start, **how.options(form, len(points)))
        members.append(Member(name, power, shares[name, power], errors[name, power], np.vstack([theta, redrawn])))
        residual.append(form.value(theta, u, v)[0] - np.log(loss))
    noise = _noise(np.array(list(shares.values())) @ np.array(residual), even)
    return Law(
        members=members,
        log_n=float(np.log(n).mean()),
        log_d=float(np.log(d).mean()),
        flops_per_nd=float(np.exp(np.median(np.log(c / n / d)))),
        noise=noise,
        drift_per_decade=_drift(inner, shares, noise),
        largest_flops=float(c.max()),
        n_points=len(points),
        points_sha256=fingerprint(points),
        seed=seed,
        loss_range=(float(loss.min()), float(loss.max())),
    )


def minimum_points(asymptote: tuple[float, float] | None) -> int:
    """How many points a law needs."""
    return MINIMUM_POINTS if asymptote is None else MINIMUM_WITH_ASYMPTOTE


def _noise(residual: np.ndarray, weight: np.ndarray) -> float:
    """Standard deviation from the mean size of the residuals, as a normal distribution would have it, with five
    parameters spent."""
    size = float(np.average(np.abs(residual), weights=weight))
    return 1.2533 * size * float(np.sqrt(len(residual) / max(1, len(residual) - 5)))


def _check(points: Sequence[Point], c: np.ndarray, loss: np.ndarray, minimum: int) -> None:
    if len(points) < minimum:
        raise TenfoldError(
            f"A law needs at least {minimum} points at two or more budgets; there are {len(points)}: train more rungs."
        )
    if not (np.isfinite(loss).all() and (loss > 0).all()):
        raise TenfoldError("A law can only be fitted to losses that are positive numbers: leave the others out.")
    if c.max() / c.min() < 1.5:
        raise TenfoldError("All points have nearly the same compute: a law needs budgets that differ by half or more.")


def _weight(n: np.ndarray, d: np.ndarray, c: np.ndarray, power: float) -> np.ndarray:
    """What each point counts: more with more compute, less far from the usual tokens per parameter, where no model is
    trained and a sum of two terms fits worst."""
    ratio = np.log10(d / n)
    return (c / c.max()) ** power * np.exp(-0.5 * ((ratio - np.median(ratio)) / RATIO_DECADES) ** 2)


def _inner_errors(how: Fit, form: Form, power: float, n: np.ndarray, d: np.ndarray, c: np.ndarray, loss: np.ndarray):
    """Signed relative errors on the points above each cut, predicted from those below it."""
    for cut in CUTS:
        below = c <= c.max() / cut * 1.0001
        if below.sum() < MINIMUM_POINTS or below.all() or c[below].max() / c[below].min() < 1.5:
            continue
        u, v = np.log(n), np.log(d)
        mu, mv = u[below].mean(), v[below].mean()
        weight = _weight(n[below], d[below], c[below], power)
        theta, _ = how.best(form, u[below] - mu, v[below] - mv, np.log(loss[below]), weight)
        value, _ = form.value(theta, u[~below] - mu, v[~below] - mv)
        yield value - np.log(loss[~below])


def _drift(inner: dict, shares: dict, noise: float) -> float:
    """Relative error per decade of extrapolation that the ensemble made on the points' own upper parts, less noise."""
    found = []
    for i, cut in enumerate(CUTS):
        if all(len(v) > i for v in inner.values()):
            mixed = sum(shares[key] * inner[key][i] for key in inner)
            excess = max(0.0, float(np.mean(mixed**2)) - noise**2)
            found.append(np.sqrt(excess) / max(0.5, np.log10(cut)))
    return float(np.mean([*found, USUAL_DRIFT]))


def _value(member: Member, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return FORMS[member.form].value(member.theta, u, v)[0][:, 0]


def _mean(parts: list[tuple[float, np.ndarray]], form: Form, u: np.ndarray, v: np.ndarray) -> float:
    total = sum(w for w, _ in parts)
    if not total:  # of points that a law goes through exactly, all weights are too small for a float
        parts, total = [(1.0, theta) for _, theta in parts], float(len(parts))
    return sum(w / total * form.value(theta, u, v)[0][0] for w, theta in parts)


def _spread(x: np.ndarray) -> float:
    low, high = np.quantile(x[1:], [0.16, 0.84])
    return float(high - low) / 2


def classic_fit(points: Sequence[Point]) -> dict[str, float]:
    """The plain refit of E + A / N^alpha + B / D^beta (Besiroglu et al., arXiv 2404.10102): Huber loss, all points alike."""
    n, d, _, loss = arrays(points)
    u, v = np.log(n) - np.log(n).mean(), np.log(d) - np.log(d).mean()
    form, first = FORMS["chinchilla"], starts(FORMS["chinchilla"], np.log(loss))
    found, value = fit(form, u, v, np.log(loss), np.ones((len(first), len(loss))), first)
    theta = found[value.argmin()]
    alpha, beta = np.exp(theta[3:])
    a, b = np.exp(theta[1] + alpha * np.log(n).mean()), np.exp(theta[2] + beta * np.log(d).mean())
    return {"E": float(np.exp(theta[0])), "A": float(a), "B": float(b), "alpha": float(alpha), "beta": float(beta)}
