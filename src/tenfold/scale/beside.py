"""Two generations of equal compute beside one another, a dense one and one with experts: forecast and measured."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from tenfold.scale import documents
from tenfold.scale.generations import generations, read_settings
from tenfold.scale.law import Law
from tenfold.scale.points import Point
from tenfold.scale.sparsity import fit_sparsity
from tenfold.spec.errors import TenfoldError
from tenfold.train.metrics import read_metrics

SIGMA_80 = 1.2816
T5_80 = 1.4759  # Student's t with 5 degrees, as the law's noise has


def other_family(generation: Path) -> Path | None:
    """The newest scored generation beside this one that differs in family (and seed) alone."""
    mine = read_settings(generation)
    for other in reversed(generations(generation.parent)):
        theirs = read_settings(other)
        alike = replace(theirs, family=mine.family, seed=mine.seed) == mine
        if alike and theirs.family != mine.family and (other / "score.json").exists():
            return other
    return None


def comparison(generation: Path, other: Path) -> dict[str, Any]:
    """Bits per byte of both, and the difference of the one with experts in percent (negative is better), with 80 %
    intervals: the forecast's from both forecasts, the measured one's from what single runs of the ladders scatter.

    With the law of both ladders by active and total parameters (`sparsity`). Raises TenfoldError where it is not one
    dense generation and one with experts at equal compute.
    """
    by_family = {read_settings(g).family: g for g in (generation, other)}
    settings = [read_settings(g) for g in (generation, other)]
    if set(by_family) != {"llama3", "llama4"} or settings[0].top_flops != settings[1].top_flops:
        raise TenfoldError(f"{generation.name} and {other.name} are not a dense generation and one with experts at equal compute.")
    dense, experts = by_family["llama3"], by_family["llama4"]
    sides = {"dense": dense, "experts": experts}
    forecast = {f: documents.read(g / "forecast.json")["loss_bits_per_byte"] for f, g in sides.items()}
    scores = {f: documents.read(g / "score.json")["scores"]["loss_bits_per_byte"] for f, g in sides.items()}
    spread = math.hypot(*(math.log(q["intervals"]["80"][1] / q["intervals"]["80"][0]) / 2 for q in forecast.values()))
    noise = T5_80 * math.hypot(*(Law.from_dict(json.loads((g / "law.json").read_text())).noise for g in (dense, experts)))
    return {
        "dense": dense.name,
        "experts": experts.name,
        "forecast": {f: q["median"] for f, q in forecast.items()},
        "measured": {f: s["measured"] for f, s in scores.items()},
        "forecast_difference": _difference(forecast["experts"]["median"], forecast["dense"]["median"], spread),
        "measured_difference": _difference(scores["experts"]["measured"], scores["dense"]["measured"], noise),
        "sparsity": _sparsity(dense, experts),
    }


def _difference(experts: float, dense: float, spread: float) -> dict[str, Any]:
    middle = math.log(experts / dense)
    return {"pct": 100 * math.expm1(middle), "interval_80": [100 * math.expm1(middle + s * spread) for s in (-1, 1)]}


def _sparsity(dense: Path, experts: Path) -> dict[str, Any] | None:
    """The law of both ladders; None where a ladder's runs are gone."""
    points, totals = [], []
    for run in sorted(file for g in (dense, experts) for file in g.glob("ladder/*/run.jsonl")):
        events = read_metrics(run)
        start, end = events[0], events[-1]
        counts = start["parameters"]
        points.append(Point(end["parameters"], end["tokens"], end["flops"], end["bits_per_byte"]))
        totals.append(counts["matrix_active"] + counts["total"] - counts["active"])
    if not points:
        return None
    law = fit_sparsity(points, totals)
    return {"gamma": law.gamma, "interval_80": list(law.interval_80), "runs": len(points), "noise": law.law.noise}
