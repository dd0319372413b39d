"""Functional forms of the law L(N, D), each with its derivative, and one robust fit for all of them.

Every form gives log L from u = log N and v = log D, both centred on the points. All parameters are free real numbers
(logarithms of the positive quantities), so that a fit needs no bounds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# Prior of the logarithm of an exponent, (mean, standard deviation): published exponents lie between 0.08 (Kaplan) and 0.37.
EXPONENT_PRIOR = (np.log(0.25), 0.5)


@dataclass(frozen=True)
class Form:
    """`value(theta [..., P], u, v)` gives log L [..., n] and its Jacobian [..., n, P]."""

    name: str
    parameters: tuple[str, ...]
    value: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def _mix(terms: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The logarithm of the sum of the terms' exponentials, and each term's share of that sum."""
    total = np.logaddexp.reduce(terms)
    return total, [np.exp(t - total) for t in terms]


def _chinchilla(theta: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    e, a, b, log_alpha, log_beta = (theta[..., i, None] for i in range(5))
    alpha, beta = np.exp(log_alpha), np.exp(log_beta)
    log_l, (pe, pa, pb) = _mix([e + 0 * u, a - alpha * u, b - beta * v])
    return log_l, np.stack([pe, pa, pb, -pa * alpha * u, -pb * beta * v], -1)


def _tied(theta: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    log_l, jacobian = _chinchilla(np.concatenate([theta, theta[..., 3:]], -1), u, v)
    return log_l, np.concatenate([jacobian[..., :3], jacobian[..., 3:].sum(-1, keepdims=True)], -1)


def _kaplan(theta: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    e, a, b, log_alpha, log_beta = (theta[..., i, None] for i in range(5))
    alpha, beta = np.exp(log_alpha), np.exp(log_beta)
    inner, (qa, qb) = _mix([a - alpha / beta * u, b - v])
    log_l, (pe, pt) = _mix([e + 0 * u, beta * inner])
    d_alpha, d_beta = -alpha * u * qa, beta * inner + alpha * u * qa
    return log_l, np.stack([pe, pt * beta * qa, pt * beta * qb, pt * d_alpha, pt * d_beta], -1)


FORMS = {
    # Hoffmann et al. (arXiv 2203.15556), approach 3: E + A / N^alpha + B / D^beta
    "chinchilla": Form("chinchilla", ("E", "A", "B", "alpha", "beta"), _chinchilla),
    # The same with alpha = beta
    "tied": Form("tied", ("E", "A", "B", "alpha"), _tied),
    # Kaplan et al. (arXiv 2001.08361), equation 1.5, with an asymptote: E + ((A / N)^(alpha / beta) + B / D)^beta
    "kaplan": Form("kaplan", ("E", "A", "B", "alpha", "beta"), _kaplan),
}


def starts(form: Form, log_loss: np.ndarray) -> np.ndarray:
    """Starting points of a fit [S, P]: a grid over the asymptote (as a share of the lowest loss) and the exponents."""
    found = []
    for share in (0.3, 0.6, 0.85):
        for alpha in (0.2, 0.4, 0.7):
            for beta in (0.2, 0.4, 0.7) if len(form.parameters) == 5 else (alpha,):
                e = np.log(share) + log_loss.min()
                rest = np.log(np.exp(np.median(log_loss)) - np.exp(e)) - np.log(2)
                scale = 1 / beta if form.name == "kaplan" else 1.0
                found.append([e, rest * scale, rest * scale, np.log(alpha), np.log(beta)][: len(form.parameters)])
    return np.array(found)


def precision(form: Form, asymptote: tuple[float, float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A prior over theta as (centre [P], 1 / variance [P]): `EXPONENT_PRIOR`, and that of log E where given (`asymptote`)."""
    centre, inverse = np.zeros(len(form.parameters)), np.zeros(len(form.parameters))
    centre[3:], inverse[3:] = EXPONENT_PRIOR[0], EXPONENT_PRIOR[1] ** -2
    if asymptote is not None:
        centre[0], inverse[0] = asymptote[0], asymptote[1] ** -2
    return centre, inverse


def fit(
    form: Form,
    u: np.ndarray,
    v: np.ndarray,
    log_loss: np.ndarray,
    weight: np.ndarray,
    theta: np.ndarray,
    *,
    delta: float = 1e-3,
    prior: tuple[np.ndarray, np.ndarray] | None = None,
    prior_weight: float = 0.0,
    iterations: int = 80,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise the weighted Huber loss of log L from several starts at once by Levenberg-Marquardt.

    weight [S, n], theta [S, P]. `prior` is (centre [P], 1 / variance [P]), multiplied by `prior_weight` in the objective.
    Returns theta [S, P] and the objective [S]: the weighted mean of the Huber loss divided by delta, plus the prior's term.
    """
    centre, inverse = prior if prior is not None else (np.zeros(theta.shape[1]), np.zeros(theta.shape[1]))
    inverse = prior_weight * inverse
    total = weight.sum(-1, keepdims=True)

    def objective(t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        value, jacobian = form.value(t, u, v)
        r = value - log_loss
        size = np.abs(r)
        huber = np.where(size <= delta, 0.5 * r**2 / delta, size - 0.5 * delta)
        pull = 0.5 * (inverse * (t - centre) ** 2).sum(-1)
        return (weight * huber).sum(-1) / total[:, 0] + pull, r, jacobian

    theta = theta.copy()
    damping = np.full(len(theta), 1e-3)
    diagonal = np.arange(theta.shape[1])
    best, r, jacobian = objective(theta)
    for _ in range(iterations):
        w = weight / total / np.maximum(np.abs(r), delta)
        gradient = np.einsum("sn,snp->sp", w * r, jacobian) + inverse * (theta - centre)
        hessian = np.einsum("sn,snp,snq->spq", w, jacobian, jacobian)
        hessian[:, diagonal, diagonal] += inverse
        scaled = hessian.copy()
        scaled[:, diagonal, diagonal] += damping[:, None] * hessian[:, diagonal, diagonal] + 1e-10
        step = np.clip(np.linalg.solve(scaled, gradient[..., None])[..., 0], -1.0, 1.0)
        trial = theta - step
        value, trial_r, trial_jacobian = objective(trial)
        better = value < best
        theta[better], best[better] = trial[better], value[better]
        r[better], jacobian[better] = trial_r[better], trial_jacobian[better]
        damping = np.where(better, damping * 0.4, damping * 5).clip(1e-9, 1e6)
    return theta, best
