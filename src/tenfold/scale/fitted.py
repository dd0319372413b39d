"""The output of `tenfold law fit`: coefficients, the compute-optimal run, and warnings about the points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tenfold.scale.law import Coefficient, Law, LossForecast, classic_fit, fit_law, minimum_points
from tenfold.scale.points import Point
from tenfold.scale.questions import beyond_sentence, outlier_sentence, outliers, questions
from tenfold.spec.errors import TenfoldError
from tenfold.spec.terminal import Figures, console

COEFFICIENTS = ("E", "A", "B", "alpha", "beta")
UNKNOWN = "not identified"
VAGUE = 100.0  # ratio of the ends of the best size's 80 % interval above which the size is called not identified


@dataclass(frozen=True)
class Fitted:
    """A law, the forecast of the compute-optimal run at `flops`, and that run's forecast by a law fitted without the outliers."""

    points: list[Point]
    law: Law
    flops: float
    params: float
    tokens: float
    forecast: LossForecast
    odd: list[Point]
    without_odd: LossForecast | None
    questions: list[str]

    @property
    def beyond(self) -> str:
        return beyond_sentence(self.points, self.params, self.tokens, self.flops)


def fit_table(points: list[Point], unusable: Sequence[int], asymptote: tuple[float, float] | None, flops: float | None) -> Fitted:
    """Fit the points of a file and forecast the compute-optimal run at `flops` (default: ten times the largest compute)."""
    law = fit_law(points, asymptote=asymptote)
    target = flops or 10 * law.largest_flops
    n, d, _ = law.optimum(target)
    odd = outliers(points, asymptote)
    return Fitted(
        points, law, target, n, d, law.predict(n, d), odd, _without(points, odd, asymptote, n, d), questions(points, unusable)
    )


def _without(points: list[Point], odd: list[Point], asymptote: Any, params: float, tokens: float) -> LossForecast | None:
    left = [p for p in points if p not in odd]
    if not odd or len(left) < minimum_points(asymptote):
        return None
    try:
        return fit_law(left, asymptote=asymptote).predict(params, tokens)
    except TenfoldError:  # the remaining points show no law
        return None


def as_json(found: Fitted, unusable: Sequence[int]) -> dict[str, Any]:
    """The result as a JSON object. The standard error of a coefficient that is not identified is None."""
    law, forecast = found.law, found.forecast
    without = found.without_odd
    return {
        "points": law.n_points,
        "unusable_rows": len(unusable),
        "unusable_row_numbers": list(unusable),
        "questions": found.questions,
        "classic": classic_fit(found.points),
        "coefficients": {name: _coefficient(c) for name, c in law.coefficients().items()},
        "members": [{"form": m.form, "weight": m.weight} for m in law.members],
        "noise": law.noise,
        "flops": found.flops,
        "params": found.params,
        "tokens": found.tokens,
        "loss": forecast.median,
        "intervals": forecast.intervals,
        "beyond": {"flops": found.flops / law.largest_flops, "sentence": found.beyond},
        "outliers": [{"row": p.row, "loss": p.loss} for p in found.odd],
        "without_outliers": without and {"loss": without.median, "intervals": without.intervals},
    }


def _coefficient(c: Coefficient) -> dict[str, Any]:
    return {
        "value": c.value,
        "standard_error": c.standard_error if c.identified else None,
        "interval_95": c.interval_95,
        "identified": c.identified,
    }


def show(found: Fitted) -> None:
    """Print the result."""
    law, forecast, out = found.law, found.forecast, console()
    coefficients, classic = law.coefficients(), classic_fit(found.points)
    table = Figures("", *COEFFICIENTS, title=f"L(N, D) = E + A/N^alpha + B/D^beta, {law.n_points} points")
    known = [name for name in COEFFICIENTS if coefficients[name].identified]
    table.add_row("plain refit", *(f"{classic[k]:.4g}" if k in known else UNKNOWN for k in COEFFICIENTS))
    table.add_row("the law", *(_cell(coefficients[k]) for k in COEFFICIENTS))
    out.print(table)
    if unknown := [name for name in COEFFICIENTS if name not in known]:
        what = ", ".join(unknown) + (" is" if len(unknown) == 1 else " are")
        out.print(f"{what} not identified by these points: other values fit them as well, so the prior decides.")
    (n0, _, _), (_, _, sizes) = law.optimum(law.largest_flops / 10), law.optimum(found.flops)
    exponent = math.log(found.params / n0) / math.log(found.flops / law.largest_flops * 10)
    out.print(f"N* grows as C^{exponent:.2f}, D* as C^{1 - exponent:.2f}.")
    if sizes[80][1] > VAGUE * sizes[80][0]:
        out.print("The best size is not identified by these points: train several sizes at each compute.")
    out.print(
        f"At {found.flops:.3g} FLOPs: {found.params:.3g} parameters (80 %: {sizes[80][0]:.3g} to {sizes[80][1]:.3g}), "
        f"{found.tokens:.3g} tokens, loss {_loss(forecast)}."
    )
    out.print(found.beyond)
    if found.odd:
        without = (
            f" Without {'it' if len(found.odd) == 1 else 'them'} the loss is {_loss(found.without_odd)}."
            if found.without_odd
            else ""
        )
        out.print(outlier_sentence(found.odd) + without)
    for sentence in found.questions:
        out.print(sentence)


def _cell(c: Coefficient) -> str:
    return f"{c.value:.4g} ± {c.standard_error:.2g}" if c.identified else UNKNOWN


def _loss(forecast: LossForecast) -> str:
    low, high = forecast.intervals[80]
    return f"{forecast.median:.4f} (80 %: {low:.4f} to {high:.4f})"
