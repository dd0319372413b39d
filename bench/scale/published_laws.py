"""The law on published points: Besiroglu et al.'s refit, and back-tests at ten and thirty times the compute.

    python -m bench.scale.published_laws

Chinchilla's points (Epoch's reading of figure 4) and the OLMo ladder's (AI2) are in `tests/data`. `bench.scale.ladders`
tests the intervals on more tables.
"""

import csv
import re

from bench.harness import ROOT, Headline, Row, options, write_results
from tenfold.scale.backtest import backtest
from tenfold.scale.law import classic_fit
from tenfold.scale.points import Point, parse_columns, read_points

DATA = ROOT / "tests" / "data"
COLUMNS = "params=Model Size,flops=Training FLOP,loss=loss"
# Besiroglu et al. (arXiv 2404.10102), table 1: value and standard error.
BESIROGLU = {
    "E": (1.8172, 0.03), "A": (482.01, 124.58), "B": (2085.43, 1293.23), "alpha": (0.3478, 0.02), "beta": (0.3658, 0.02),
}  # fmt: skip


def chinchilla() -> list[Point]:
    """The 245 points of Chinchilla's figure 4, in the order of tokens per parameter."""
    points, _ = read_points(DATA / "chinchilla_points.csv", parse_columns(COLUMNS))
    return sorted(points, key=lambda p: p.tokens / p.params)


def chinchilla_trimmed() -> list[Point]:
    """Without the five points of fewest tokens per parameter, as in Besiroglu et al."""
    return chinchilla()[5:]


def olmo_ladder(column: str = "c4_loss") -> list[Point]:
    """The final losses of the OLMo ladder on C4, or in another column."""
    points = []
    with (DATA / "olmo_ladder_points.csv").open() as stream:
        for row in csv.DictReader(stream):
            if found := re.match(r"\d+[MB]-([\d.]+)xC", row["run"]):
                # "MxC" is M times 20 tokens per parameter; reruns are other seeds of the same.
                tokens = float(row["throughput/total_tokens"])
                size = tokens / 20 / float(found[1])
                points.append(Point(size, tokens, 6 * size * tokens, float(row[column])))
    return points


def headline(rows: list[Row]) -> Headline:
    for r in rows:
        if r["case"] == "backtest" and r["holdout"] == 10 and r["data"] in ("Chinchilla", "OLMo ladder C4"):
            what = f"{r['data']}, forecast from 1/{r['holdout']:g} of the compute ({r['held_out_points']} runs): mean error"
            yield what, f"{r['mean_abs_error_pct']:.2f} %, 80 % interval held in {r['inside_80']:.0%}"


def main() -> None:
    options(__doc__).parse_args()
    sets = {"Chinchilla": chinchilla(), "Chinchilla less five": chinchilla_trimmed(), "OLMo ladder C4": olmo_ladder()}
    fitted = classic_fit(sets["Chinchilla less five"])
    rows: list[Row] = [
        {"case": "besiroglu", "coefficient": name, "published": value, "standard_error": error, "found": fitted[name]}
        for name, (value, error) in BESIROGLU.items()
    ]
    for name, points in sets.items():
        for holdout in (10.0, 30.0):
            rows.append({"case": "backtest", "data": name, "holdout": holdout, **backtest(points, holdout).summary()})
            print({k: rows[-1][k] for k in ("data", "holdout", "mean_abs_error_pct", "inside_80")}, flush=True)
    write_results("published_laws", rows, headline(rows))


if __name__ == "__main__":
    main()
