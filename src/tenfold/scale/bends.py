"""Bends of a loss over compute that no law follows: a law's tangent space, and which part of a bend lies outside of it.

A bend of size `b` that begins at a compute C0 adds b log10(C / C0) to the logarithm of the loss beyond C0: the loss goes on with
another slope there (a break as in broken neural scaling laws, Caballero et al., arXiv 2210.14891, at its sharpest), or nearly
with none, where a floor is reached. What the law's own parameters can follow of it is no bend, so points and bends are projected
onto what they cannot. Gaussian noise points in every direction of that space alike, whatever its size, so the distribution of
the largest cosine between it and a bend needs no noise to be known and is found by drawing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tenfold.scale.forms import FORMS, Form, fit
from tenfold.scale.points import Point, arrays
from tenfold.scale.posterior import KERNELS, Data, Scale, first_fits, trust

PLACES = 20  # at which a bend may begin, evenly over the computes of the points
DRAWS = 4000
FLAT = 1e-3  # of a bend's length: what is left of one that a law follows
SQUARES = 10.0  # of log loss: a Huber loss so wide is one of squares
OFF_FRONTIER = max(off for _, _, off in KERNELS)


@dataclass(frozen=True)
class BestLaw:
    """The form with the least squares, at its best parameters. `trusted` [n] is how much each point counts, `spread` [n] how many
    times the noise of the best run of its compute it has."""

    form: Form
    theta: np.ndarray
    data: Data
    trusted: np.ndarray
    spread: np.ndarray

    @property
    def root_weight(self) -> np.ndarray:
        """[n], by which rows are multiplied for equal noise."""
        return np.sqrt(self.trusted) / self.spread

    @property
    def residual(self) -> np.ndarray:
        """[n], log loss less the law's."""
        return self.data.y - self.form.value(self.theta, self.data.u, self.data.v)[0]

    def slope(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Directions [n, P] in which the parameters move the log loss of runs at (u, v)."""
        return self.form.value(self.theta, u, v)[1]


def best_law(points: Sequence[Point]) -> BestLaw:
    """Of Chinchilla's form and Kaplan's, fitted without a prior, the one with the least weighted squares."""
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
    """Bends that begin at `breaks` [places] (log10 FLOPs), in the space of `basis` [n, free] that no parameter reaches.

    `root_weight` and `log_flops` (log10) are those of the n runs.
    """

    basis: np.ndarray
    root_weight: np.ndarray
    log_flops: np.ndarray
    breaks: np.ndarray

    @staticmethod
    def of(slope: np.ndarray, root_weight: np.ndarray, log_flops: np.ndarray) -> "Bends":
        """Bends of runs whose law has the `slope` [n, P]; only those of which some is left."""
        rows = slope * root_weight[:, None]
        left, size, _ = np.linalg.svd(rows / np.linalg.norm(rows, axis=0))
        basis = left[:, int((size > 1e-9 * size[0]).sum()) :]
        breaks = np.linspace(log_flops.min(), log_flops.max(), PLACES + 2)[1:-1]
        bends = Bends(basis, root_weight, log_flops, breaks)
        whole = np.linalg.norm(np.maximum(0.0, log_flops[:, None] - breaks) * root_weight[:, None], axis=0)
        return Bends(basis, root_weight, log_flops, breaks[np.linalg.norm(bends.columns, axis=0) > FLAT * whole])

    def beyond(self, place: float) -> np.ndarray:
        """What a bend of 1 that begins at `place` leaves [free]."""
        return self.seen(np.maximum(0.0, self.log_flops - place))

    def seen(self, log_loss: np.ndarray) -> np.ndarray:
        """The part [free] of differences of log loss [n] that no parameter follows."""
        return self.basis.T @ (self.root_weight * log_loss)

    @cached_property
    def columns(self) -> np.ndarray:
        """`beyond` of all breaks [free, places]."""
        return np.stack([self.beyond(place) for place in self.breaks], -1)

    @cached_property
    def units(self) -> np.ndarray:
        """`columns` of length 1."""
        return self.columns / np.linalg.norm(self.columns, axis=0)

    def cosine(self, z: np.ndarray) -> np.ndarray:
        """The largest cosine [draws] between vectors z [draws, free] and a bend upwards."""
        return (z @ self.units).max(-1) / np.linalg.norm(z, axis=-1)

    @cached_property
    def noise(self) -> np.ndarray:
        """Draws of noise of size 1 [draws, free], the same at every call."""
        return np.random.default_rng(0).standard_normal((DRAWS, self.basis.shape[1]))

    @cached_property
    def noise_cosines(self) -> np.ndarray:
        return self.cosine(self.noise)

    def power(self, place: float, level: float) -> Callable[[float], float]:
        """The probability of an alarm, which noise alone raises with the probability `level`, where a bend begins at `place`: a
        function of the size of the bend (log loss a decade) over the noise of a run (relative)."""
        bend, threshold = self.beyond(place), np.quantile(self.noise_cosines, 1 - level)
        noise, along = self.noise @ self.units, self.noise @ bend
        lengths, shift = (self.noise**2).sum(-1), bend @ self.units

        def of(ratio: float) -> float:
            length = np.sqrt(lengths + 2 * ratio * along + ratio**2 * (bend @ bend))
            return float(np.mean((noise + ratio * shift).max(-1) > threshold * length))

        return of


def log_flops_of(points: Sequence[Point]) -> np.ndarray:
    return np.log10(arrays(points)[2])
