"""Back-tests of a law: hide the points of the largest compute, forecast them, and count how often the intervals contain them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tenfold.scale.isoflop import rungs
from tenfold.scale.law import LEVELS, fit_law, minimum_points
from tenfold.scale.points import Point
from tenfold.spec.errors import TenfoldError


@dataclass(frozen=True)
class Prediction:
    """One hidden point: its measured `loss`, the forecast, and whether each interval (percent) contains the loss."""

    params: float
    tokens: float
    flops: float
    loss: float
    forecast: float
    error_pct: float
    inside: dict[int, bool]


@dataclass(frozen=True)
class Backtest:
    """The forecasts of all hidden points by a law fitted to the points of at most `fitted_up_to_flops`."""

    fitted_points: int
    fitted_up_to_flops: float
    predictions: list[Prediction]

    def summary(self) -> dict[str, Any]:
        """Mean, worst and largest-run error in percent, and the share of points inside each interval."""
        errors = np.array([p.error_pct for p in self.predictions])
        largest = max(self.predictions, key=lambda p: p.flops)
        return {
            "fitted_points": self.fitted_points,
            "fitted_up_to_flops": self.fitted_up_to_flops,
            "held_out_points": len(self.predictions),
            "mean_abs_error_pct": float(np.abs(errors).mean()),
            "worst_error_pct": float(errors[np.abs(errors).argmax()]),
            "largest_run_error_pct": largest.error_pct,
            **{f"inside_{level}": float(np.mean([p.inside[level] for p in self.predictions])) for level in LEVELS},
        }

    def to_dict(self) -> dict[str, Any]:
        return {**self.summary(), "predictions": [asdict(p) for p in self.predictions]}


def backtest(points: Sequence[Point], holdout: float, *, asymptote: tuple[float, float] | None = None, seed: int = 0) -> Backtest:
    """Fit the points of at most 1 / `holdout` of the largest compute and forecast the others; `asymptote` as in `fit_law`.

    Raises TenfoldError where no point is hidden, too few are left, or `fit_law` does.
    """
    if holdout <= 1:
        raise TenfoldError(f"--holdout must be more than 1 (10 hides the last factor of ten), not {holdout:g}.")
    if not points:
        raise TenfoldError("There are no points for a back-test: give rows with positive numbers.")
    edge = max(p.flops for p in points) / holdout * 1.0001
    below = [p for p in points if p.flops <= edge]
    above = [p for p in points if p.flops > edge]
    minimum = minimum_points(asymptote)
    if not above:
        raise TenfoldError(f"--holdout {holdout:g} hides no point: give a larger one (10 hides the last factor of ten).")
    if len(below) < minimum:
        raise TenfoldError(
            f"Only {len(below)} points lie below 1/{holdout:g} of the largest compute and a law needs {minimum}: "
            "lower --holdout or add smaller runs."
        )
    law = fit_law(below, asymptote=asymptote, seed=seed)
    predictions = []
    forecasts = law.predict_all([p.params for p in above], [p.tokens for p in above])
    for p, forecast in zip(above, forecasts, strict=True):
        inside = {level: low <= p.loss <= high for level, (low, high) in forecast.intervals.items()}
        error = 100 * (forecast.median / p.loss - 1)
        predictions.append(Prediction(p.params, p.tokens, p.flops, p.loss, forecast.median, error, inside))
    return Backtest(len(below), max(p.flops for p in below), predictions)


def rung_by_rung(points: Sequence[Point], *, asymptote: tuple[float, float] | None = None, seed: int = 0) -> list[Backtest]:
    """For each rung with enough points below it, a law fitted to those points and its forecasts of that rung."""
    groups = rungs(points)
    found = []
    for i, (_, rung) in enumerate(groups):
        below = [p for _, group in groups[:i] for p in group]
        if len(below) < minimum_points(asymptote) or max(p.flops for p in below) / min(p.flops for p in below) < 1.5:
            continue
        holdout = max(p.flops for p in rung) / max(p.flops for p in below)
        found.append(backtest([*below, *rung], holdout * 0.9999, asymptote=asymptote, seed=seed))
    return found
