"""Coverage of the law's intervals on public ladders, calibrated on the other studies, and on ladders of known laws.

    python -m bench.scale.ladders --more FOLDER

On every ladder the runs above a tenth of the largest compute are hidden and forecast. The parameters that all ladders share
(`Calibration`) are chosen by the interval score on the ladders of the *other* studies. FOLDER may contain further tables with the
columns of `bench/scale/public_ladders`, named STUDY-TABLE.csv. `--synthetic 100` instead forecasts 100 ladders of each of five
known laws, with the shipped calibration, and writes `known_laws.json`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from bench.harness import ROOT, Headline, Row, options, write_results
from bench.scale.published_laws import chinchilla, olmo_ladder
from tenfold.scale.law import fit_law
from tenfold.scale.points import Point, arrays, read_points
from tenfold.scale.posterior import Calibration

MISFIT = (0.005, 0.01)
WIDTHS = np.arange(0.6, 1.31, 0.05)
HOLDOUT = 10.0
NOISE = 0.004  # standard deviation of the log loss of a run of a known law
TRUTHS: dict[str, Callable[[float, float], float]] = {
    "Chinchilla": lambda n, d: 1.69 + 406.4 / n**0.34 + 410.7 / d**0.28,
    "Besiroglu": lambda n, d: 1.8172 + 482.01 / n**0.3478 + 2085.43 / d**0.3658,
    "Kaplan-like": lambda n, d: ((8.8e13 / n) ** (0.076 / 0.095) + 5.4e13 / d) ** 0.095,
    "E = 0": lambda n, d: 20 / n**0.12 + 30 / d**0.14,
    "steep": lambda n, d: 2 + 3e4 / n**0.6 + 3e5 / d**0.6,
}
COEFFICIENTS = {
    "Chinchilla": {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28},
    "Besiroglu": {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658},
    "E = 0": {"E": 0.0, "A": 20, "alpha": 0.12, "B": 30, "beta": 0.14},
    "steep": {"E": 2.0, "A": 3e4, "alpha": 0.6, "B": 3e5, "beta": 0.6},
}


@dataclass(frozen=True)
class Hidden:
    """Log losses of hidden runs, each [runs]: measured, forecast, and the ends of the 80 % interval before it is scaled."""

    measured: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def ends(self, width: float) -> tuple[np.ndarray, np.ndarray]:
        return self.middle + width * (self.low - self.middle), self.middle + width * (self.high - self.middle)

    def inside(self, width: float) -> np.ndarray:
        low, high = self.ends(width)
        return (low <= self.measured) & (self.measured <= high)

    def score(self, width: float) -> float:
        """The interval score of Gneiting and Raftery (2007) for 80 %, in the mean: lower is better."""
        low, high = self.ends(width)
        missed = np.maximum(low - self.measured, 0) + np.maximum(self.measured - high, 0)
        return float(np.mean(high - low + 10 * missed))

    @property
    def error(self) -> np.ndarray:
        return np.abs(self.middle - self.measured)


def ladders(more: Path | None) -> dict[str, list[Point]]:
    """The points of all ladders, by STUDY-TABLE."""
    tables = {"chinchilla-figure 4": chinchilla(), "olmo-c4": olmo_ladder(), "olmo-pile": olmo_ladder("pile_loss")}
    for folder in (ROOT / "bench" / "scale" / "public_ladders", more):
        for path in sorted(folder.glob("*.csv")) if folder else ():
            tables[path.stem] = read_points(path)[0]
    return tables


def hide(points: list[Point], calibration: Calibration) -> Hidden:
    """Forecast the runs above a tenth of the largest compute from the others."""
    edge = max(p.flops for p in points) / HOLDOUT * 1.0001
    above = [p for p in points if p.flops > edge]
    law = fit_law([p for p in points if p.flops <= edge], calibration=calibration)
    forecasts = law.predict_all([p.params for p in above], [p.tokens for p in above])
    low, high = (np.log([f.intervals[80][end] for f in forecasts]) for end in (0, 1))
    return Hidden(np.log(arrays(above)[3]), np.log([f.median for f in forecasts]), low, high)


def choose(found: dict[Calibration, dict[str, Hidden]], names: list[str]) -> Calibration:
    """The calibration with the lowest interval score on the named ladders.

    Scores are averaged as logarithms, so that each ladder counts alike. The width is the smallest that holds 80 % of the runs, with
    each study weighted alike.
    """

    def width_of(results: dict[str, Hidden]) -> float:
        for width in WIDTHS:
            by_study: dict[str, list[np.ndarray]] = {}
            for name in names:
                by_study.setdefault(name.split("-")[0], []).append(results[name].inside(width))
            if np.mean([np.concatenate(parts).mean() for parts in by_study.values()]) >= 0.8:
                break
        return float(width)

    def score(results: dict[str, Hidden], width: float) -> float:
        return float(np.mean([np.log(results[name].score(width)) for name in names]))

    best = min(found, key=lambda c: score(found[c], width_of(found[c])))
    return replace(best, width=round(width_of(found[best]), 2))


def judge(found: dict[Calibration, dict[str, Hidden]], tables: list[str]) -> list[Row]:
    """A row for each ladder, with the calibration chosen on the ladders of other studies."""
    rows = []
    for name in tables:
        chosen = choose(found, [other for other in tables if other.split("-")[0] != name.split("-")[0]])
        hidden = found[replace(chosen, width=1.0)][name]
        low, high = hidden.ends(chosen.width)
        inside = int(hidden.inside(chosen.width).sum())
        rows.append({
            "case": "ladder", "ladder": name, "hidden": len(low), "mean_abs_error_pct": 100 * float(hidden.error.mean()),
            "worst_error_pct": 100 * float(hidden.error.max()), "inside_80": inside,
            "p_so_few_or_fewer": float(stats.binom.cdf(inside, len(low), 0.8)),
            "mean_width_pct": 100 * float((high - low).mean()), "misfit": chosen.misfit[0], "width": chosen.width,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def pooled(rows: list[Row]) -> Row:
    hidden = sum(r["hidden"] for r in rows)
    error, width = (sum(r[name] * r["hidden"] for r in rows) / hidden for name in ("mean_abs_error_pct", "mean_width_pct"))
    return {
        "case": "pooled", "ladders": len(rows), "hidden": hidden, "inside_80": sum(r["inside_80"] for r in rows) / hidden,
        "mean_abs_error_pct": error, "width_over_error": width / error,
        "least_p": min(r["p_so_few_or_fewer"] for r in rows),
    }  # fmt: skip


def known_ladder(truth: Callable[[float, float], float], seed: int) -> tuple[list[Point], Point]:
    """(thirty runs of six budgets, the run of ten times the largest compute that is to be forecast)."""
    rng = np.random.default_rng(seed)

    def run(flops: float, ratio: float) -> Point:
        n = (flops / 6 / ratio) ** 0.5
        return Point(n, ratio * n, flops, truth(n, ratio * n) * float(np.exp(NOISE * rng.standard_normal())))

    points = [run(c, ratio) for c in (1e18, 3e18, 1e19, 3e19, 1e20, 3e20) for ratio in (5, 10, 20, 40, 80)]
    return points, run(3e21, 20)


def synthetic(name: str, count: int) -> Row:
    """How often the 80 % interval of a forecast, and the 95 % intervals of identified coefficients, hold."""
    held, errors, widths = [], [], []
    of: dict[str, list[bool]] = {}
    for seed in range(count):
        points, target = known_ladder(TRUTHS[name], seed)
        law = fit_law(points)
        forecast = law.predict(target.params, target.tokens)
        low, high = forecast.intervals[80]
        held.append(low <= target.loss <= high)
        errors.append(abs(forecast.median / target.loss - 1))
        widths.append(np.log(high / low))
        for key, c in law.coefficients().items():
            if c.identified and name in COEFFICIENTS:
                of.setdefault(key, []).append(c.interval_95[0] <= COEFFICIENTS[name][key] <= c.interval_95[1])
    flat = [inside for row in of.values() for inside in row]
    row = {
        "case": "synthetic", "truth": name, "ladders": count, "inside_80": float(np.mean(held)),
        "mean_abs_error_pct": 100 * float(np.mean(errors)), "mean_width_pct": 100 * float(np.mean(widths)),
        "identified": len(flat), "coefficients_inside_95": float(np.mean(flat)) if flat else None,
        "by_coefficient": {key: [float(np.mean(v)), len(v)] for key, v in of.items()},
    }  # fmt: skip
    print(row, flush=True)
    return row


def headline(rows: list[Row]) -> Headline:
    for r in rows:
        if r["case"] == "pooled":
            yield (
                f"{r['ladders']} public ladders, {r['hidden']} runs forecast from 1/10 of the compute, calibrated on other studies",
                f"mean error {r['mean_abs_error_pct']:.2f} %, 80 % interval held in {r['inside_80']:.0%}",
            )
    if known := [r for r in rows if r["case"] == "synthetic"]:
        held = ", ".join(f"{r['truth']} {r['inside_80']:.0%}" for r in known)
        yield f"{known[0]['ladders']} ladders of each known truth: 80 % interval held", held


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--more", type=Path, help="a folder with further tables")
    parser.add_argument("--synthetic", type=int, default=0, help="number of ladders of each known law")
    given = parser.parse_args()
    if given.synthetic:
        rows = [synthetic(name, given.synthetic) for name in TRUTHS]
        write_results("known_laws", rows, headline(rows))
        return
    tables = ladders(given.more)
    found = {}
    for misfit in MISFIT:
        calibration = Calibration((misfit, Calibration.misfit[1]), 1.0)
        found[calibration] = {name: hide(points, calibration) for name, points in tables.items()}
        print(calibration, flush=True)
    rows = judge(found, list(tables))
    rows += [pooled(rows), {"case": "all", **vars(choose(found, list(tables)))}]
    print(rows[-2], rows[-1], flush=True)
    write_results("ladders", rows, headline(rows))


if __name__ == "__main__":
    main()
