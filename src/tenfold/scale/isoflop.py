"""IsoFLOP minima: at each compute, the size at which the loss is lowest (Hoffmann et al., arXiv 2203.15556, approach 2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tenfold.scale.points import Point


@dataclass(frozen=True)
class Minimum:
    """The lowest point of a parabola for log loss in log params, with the parabola's `coefficients`, highest power first."""

    params: float
    loss: float
    coefficients: np.ndarray

    def curve(self, params: np.ndarray) -> np.ndarray:
        return np.exp(np.polyval(self.coefficients, np.log(params)))


def rungs(points: Sequence[Point], tolerance: float = 0.1) -> list[tuple[float, list[Point]]]:
    """(median FLOPs, points) of each rung, in rising order: points within a relative `tolerance` of the next are one rung."""
    groups: list[list[Point]] = []
    for point in sorted(points, key=lambda p: p.flops):
        if groups and point.flops <= groups[-1][-1].flops * (1 + tolerance):
            groups[-1].append(point)
        else:
            groups.append([point])
    return [(float(np.median([p.flops for p in group])), group) for group in groups]


def minimum(group: Sequence[Point]) -> Minimum | None:
    """The minimum of a parabola fitted robustly (Huber weights) to one rung; None where it lies outside of the sizes trained."""
    if len({p.params for p in group}) < 3:
        return None
    x, y = np.log([p.params for p in group]), np.log([p.loss for p in group])
    weight = np.ones(len(x))
    for _ in range(20):
        coefficients = np.polyfit(x, y, 2, w=np.sqrt(weight))
        residual = np.abs(np.polyval(coefficients, x) - y)
        scale = 1.5 * max(1e-6, float(np.median(residual)))
        weight = np.minimum(1.0, scale / np.maximum(residual, 1e-12))
    a, b, _ = coefficients
    if a <= 0:
        return None
    best = -b / (2 * a)
    if not x.min() <= best <= x.max():
        return None
    return Minimum(float(np.exp(best)), float(np.exp(np.polyval(coefficients, best))), coefficients)
