"""Bends in the curve of loss over compute that no law can fit: the basis of the test in `limit`.

A bend of size `b` that begins at a compute C0 adds b log10(C / C0) to the logarithm of the loss beyond C0. The loss then falls
with another slope (the sharpest case of a break in broken neural scaling laws, Caballero et al., arXiv 2210.14891), or hardly
falls, where it reaches a floor. The part of a bend that a change of the law's parameters could also produce cannot be told from
the law. Points and bends are therefore projected onto the complement of the law's tangent space. Gaussian noise has no preferred
direction in that space, so the distribution of the largest cosine between noise and a bend does not depend on the size of the
noise; it is found by simulation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tenfold.scale.forms import FORMS, Form, fit
from tenfold.scale.points import Point, arrays
from tenfold.scale.posterior import KERNELS, Data, Scale, first_fits, trust

PLACES = 20  # computes at which a bend may begin, evenly spaced in the logarithm over those of the points
DRAWS = 4000
FLAT = 1e-3  # a bend of which a smaller share of its length remains outside of the tangent space is left out
SQUARES = 10.0  # delta of the Huber loss, in log loss: so wide that the loss is quadratic everywhere
OFF_FRONTIER = max(off for _, _, off in KERNELS)


@dataclass(frozen=True)
class BestLaw:
    """The form with the least weighted squares, at its best parameters.

    `trusted` [n] is how much each point counts (0 to 1), `spread` [n] its noise as a multiple of that of the best run at its
    compute.
    """

    form: Form
    theta: np.ndarray
    data: Data
    trusted: np.ndarray
    spread: np.ndarray

    @property
    def root_weight(self) -> np.ndarray:
        """Factors [n] that give all rows the same noise."""
        return np.sqrt(self.trusted) / self.spread

    @property
    def residual(self) -> np.ndarray:
        """The log loss of the points minus the law's [n]."""
        return self.data.y - self.form.value(self.theta, self.data.u, self.data.v)[0]

    def slope(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The Jacobian [n, P] of the log loss of runs at u = log N and v = log D (centred as in `Data`)."""
        return self.form.value(self.theta, u, v)[1]


def best_law(points: Sequence[Point]) -> BestLaw:
    """Fit Chinchilla's and Kaplan's forms without a prior, and return the one with the least weighted squares."""
    data = Data.of(points)
    first = first_fits(data, None)
    scale = Scale(first["chinchilla"])
    trusted, spread = trust(data, first, scale), scale(data.u, data.v, OFF_FRONTIER)
    weight = (trusted / spread**2)[None]
    found = []
    for form in (FORMS["chinchilla"], FORMS["kaplan"]):
        theta, squares = fit(form, data.u, data.v, data.y, weight, first[form.name][None], delta=SQUARES)
        found.append((float(squares[0]), BestLaw(form, theta[0], data, trusted, spread)))
    return min(found, key=lambda one: one[0])[1]


@dataclass(frozen=True)
class Bends:
    """Bends that begin at `breaks` [places] (log10 FLOPs), projected onto `basis` [n, free], the complement of the tangent space.

    `root_weight` and `log_flops` (log10) [n] are those of the runs.
    """

    basis: np.ndarray
    root_weight: np.ndarray
    log_flops: np.ndarray
    breaks: np.ndarray

    @staticmethod
    def of(slope: np.ndarray, root_weight: np.ndarray, log_flops: np.ndarray) -> "Bends":
        """Bends of runs at which the law has the Jacobian `slope` [n, P]; only those that the law cannot follow (`FLAT`)."""
        rows = slope * root_weight[:, None]
        left, size, _ = np.linalg.svd(rows / np.linalg.norm(rows, axis=0))
        basis = left[:, int((size > 1e-9 * size[0]).sum()) :]
        breaks = np.linspace(log_flops.min(), log_flops.max(), PLACES + 2)[1:-1]
        bends = Bends(basis, root_weight, log_flops, breaks)
        whole = np.linalg.norm(np.maximum(0.0, log_flops[:, None] - breaks) * root_weight[:, None], axis=0)
        return Bends(basis, root_weight, log_flops, breaks[np.linalg.norm(bends.columns, axis=0) > FLAT * whole])

    def beyond(self, place: float) -> np.ndarray:
        """The projection [free] of a bend of size 1 that begins at `place` (log10 FLOPs)."""
        return self.seen(np.maximum(0.0, self.log_flops - place))

    def seen(self, log_loss: np.ndarray) -> np.ndarray:
        """The projection [free] of differences of log loss [n]: the part that no change of the parameters can produce."""
        return self.basis.T @ (self.root_weight * log_loss)

    @cached_property
    def columns(self) -> np.ndarray:
        """The projections of all bends [free, places]."""
        return np.stack([self.beyond(place) for place in self.breaks], -1)

    @cached_property
    def units(self) -> np.ndarray:
        """`columns`, each scaled to length 1."""
        return self.columns / np.linalg.norm(self.columns, axis=0)

    def cosine(self, z: np.ndarray) -> np.ndarray:
        """The largest cosine [draws] between vectors z [draws, free] and an upward bend at any break."""
        return (z @ self.units).max(-1) / np.linalg.norm(z, axis=-1)

    @cached_property
    def noise(self) -> np.ndarray:
        """Draws of standard normal noise [draws, free], the same at every call."""
        return np.random.default_rng(0).standard_normal((DRAWS, self.basis.shape[1]))

    @cached_property
    def noise_cosines(self) -> np.ndarray:
        return self.cosine(self.noise)

    def power(self, place: float, level: float) -> Callable[[float], float]:
        """The power of the test at significance `level` against a bend that begins at `place` (log10 FLOPs).

        Returns a function of the bend's size (log loss per decade) divided by the relative noise of a run.
        """
        bend, threshold = self.beyond(place), np.quantile(self.noise_cosines, 1 - level)
        noise, along = self.noise @ self.units, self.noise @ bend
        lengths, shift = (self.noise**2).sum(-1), bend @ self.units

        def of(ratio: float) -> float:
            length = np.sqrt(lengths + 2 * ratio * along + ratio**2 * (bend @ bend))
            return float(np.mean((noise + ratio * shift).max(-1) > threshold * length))

        return of


def log_flops_of(points: Sequence[Point]) -> np.ndarray:
    return np.log10(arrays(points)[2])
