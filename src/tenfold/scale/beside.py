"""Comparison of two generations of equal compute, a dense one and one with experts: forecast and measured loss."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scipy import stats

from tenfold.scale import documents
from tenfold.scale.generations import generations, read_settings
from tenfold.scale.law import Law
from tenfold.scale.points import Point
from tenfold.scale.sparsity import fit_sparsity
from tenfold.spec.errors import TenfoldError
from tenfold.train.metrics import read_metrics

FAMILIES = {"llama3", "llama4"}  # dense, and with experts


def other_family(generation: Path) -> Path | None:
    """The newest scored generation in the same home, of the other of `FAMILIES`, with equal settings apart from the seed."""
    mine = read_settings(generation)
    for other in reversed(generations(generation.parent)):
        theirs = read_settings(other)
        alike = replace(theirs, family=mine.family, seed=mine.seed) == mine
        if alike and {mine.family, theirs.family} == FAMILIES and (other / "score.json").exists():
            return other
    return None


def comparison(generation: Path, other: Path) -> dict[str, Any]:
    """Bits per byte of both generations, and how much lower (negative) or higher that with experts is, in percent.

    The differences have 80 % intervals: that of the forecasts from the intervals of both, that of the measured losses from the
    noise of a single run by each ladder's law. `sparsity` is a law of both ladders by active and total parameters. Raises
    TenfoldError where it is not one dense generation and one with experts at equal compute.
    """
    by_family = {read_settings(g).family: g for g in (generation, other)}
    settings = [read_settings(g) for g in (generation, other)]
    if set(by_family) != FAMILIES or settings[0].top_flops != settings[1].top_flops:
        raise TenfoldError(f"{generation.name} and {other.name} are not a dense generation and one with experts at equal compute.")
    dense, experts = by_family["llama3"], by_family["llama4"]
    sides = {"dense": dense, "experts": experts}
    forecast = {f: documents.read(g / "forecast.json")["loss_bits_per_byte"] for f, g in sides.items()}
    scores = {f: documents.read(g / "score.json")["scores"]["loss_bits_per_byte"] for f, g in sides.items()}
    spread = math.hypot(*(math.log(q["intervals"]["80"][1] / q["intervals"]["80"][0]) / 2 for q in forecast.values()))
    noise = _noise_80([Law.from_dict(json.loads((g / "law.json").read_text())) for g in (dense, experts)])
    return {
        "dense": dense.name,
        "experts": experts.name,
        "forecast": {f: q["median"] for f, q in forecast.items()},
        "measured": {f: s["measured"] for f, s in scores.items()},
        "forecast_difference": _difference(forecast["experts"]["median"], forecast["dense"]["median"], spread),
        "measured_difference": _difference(scores["experts"]["measured"], scores["dense"]["measured"], noise),
        "sparsity": _sparsity(dense, experts),
    }


def _noise_80(laws: Sequence[Law]) -> float:
    """Half of the 80 % interval of the difference of two log losses, one run of each law: Student's t with Welch's degrees of
    freedom."""
    variances = [law.noise**2 for law in laws]
    if not any(variances):
        return 0.0
    freedom = sum(variances) ** 2 / sum(v**2 / law.freedom for v, law in zip(variances, laws, strict=True))
    return float(stats.t.ppf(0.9, freedom)) * math.sqrt(sum(variances))


def _difference(experts: float, dense: float, spread: float) -> dict[str, Any]:
    middle = math.log(experts / dense)
    return {"pct": 100 * math.expm1(middle), "interval_80": [100 * math.expm1(middle + s * spread) for s in (-1, 1)]}


def _sparsity(dense: Path, experts: Path) -> dict[str, Any] | None:
    """The law of both ladders together; None where one has no ladder (it climbed on from another generation, or was deleted)."""
    ladders = [sorted(g.glob("ladder/*/run.jsonl")) for g in (dense, experts)]
    if not all(ladders):
        return None
    points, totals = [], []
    for run in sorted(run for ladder in ladders for run in ladder):
        events = read_metrics(run)
        start, end = events[0], events[-1]
        counts = start["parameters"]
        points.append(Point(end["parameters"], end["tokens"], end["flops"], end["bits_per_byte"]))
        totals.append(counts["matrix_active"] + counts["total"] - counts["active"])
    law = fit_sparsity(points, totals)
    return {"gamma": law.gamma, "interval_80": list(law.interval_80), "runs": len(points), "noise": law.law.noise}
