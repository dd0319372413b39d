"""The law on published points: Besiroglu's refit, and back-tests at ten and thirty times the compute.

    python bench/published_laws.py ../shared/published/runs

The directory holds `chinchilla_epoch` (Epoch's reading of Chinchilla's figure 4), `olmo_ladder` (AI2's final points)
and `porian` (Porian et al., arXiv 2406.19146), each as its authors published it.
"""

import csv
import re
import sys
from pathlib import Path

from results_file import write_results

from tenfold.scale.backtest import backtest
from tenfold.scale.law import classic_fit
from tenfold.scale.points import Point, parse_columns, read_points


def main() -> None:
    runs = Path(sys.argv[1])
    columns = parse_columns("params=Model Size,flops=Training FLOP,loss=loss")
    chinchilla, _ = read_points(runs / "chinchilla_epoch/svg_extracted_data.csv", columns)
    # Besiroglu et al. leave out the five points of fewest tokens a parameter.
    trimmed = sorted(chinchilla, key=lambda p: p.tokens / p.params)[5:]
    olmo = []
    with (runs / "olmo_ladder/ladder_final_points.csv").open() as stream:
        for row in csv.DictReader(stream):
            if found := re.match(r"\d+[MB]-([\d.]+)xC", row["run"]):
                # "MxC" is M times 20 tokens a parameter; reruns are other seeds of the same.
                tokens = float(row["throughput/total_tokens"])
                size = tokens / 20 / float(found[1])
                olmo.append(Point(size, tokens, 6 * size * tokens, float(row["c4_loss"])))
    sets = {"Chinchilla": chinchilla, "Chinchilla less five": trimmed, "OLMo ladder C4": olmo}
    for path in sorted((runs / "porian").glob("*_points.csv")):
        sets[f"porian {path.stem.removeprefix('summary_df').removesuffix('_points').strip('_')}".strip()] = read_points(path)[0]
    published = {"E": (1.8172, 0.03), "A": (482.01, 124.58), "B": (2085.43, 1293.23)}
    published |= {"alpha": (0.3478, 0.02), "beta": (0.3658, 0.02)}
    fitted = classic_fit(trimmed)
    rows: list[dict] = [
        {"case": "besiroglu", "coefficient": k, "published": v, "standard_error": s, "found": fitted[k]}
        for k, (v, s) in published.items()
    ]
    for name, points in sets.items():
        for holdout in (10.0, 30.0):
            rows.append({"case": "backtest", "data": name, "holdout": holdout, **backtest(points, holdout).summary()})
            print({k: rows[-1][k] for k in ("data", "holdout", "mean_abs_error_pct", "inside_80")}, flush=True)
    write_results("published_laws", rows)


if __name__ == "__main__":
    main()
