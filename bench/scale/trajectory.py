"""Losses along the OLMo ladder's largest runs, forecast from the smaller ones, and the scatter between seeds.

    python -m bench.scale.trajectory

The runs above a tenth, then above a thirtieth of the largest compute are hidden. The table is in `tests/data` (every run's losses
on C4 at some 40 moments); reruns have other seeds.
"""

import numpy as np

from bench.harness import ROOT, Headline, Row, options, write_results
from tenfold.scale.trajectory import MOMENTS, Curve, forecast_trajectory, read_curves

TABLE = ROOT / "tests" / "data" / "olmo_ladder_trajectories.csv"
HOLDOUTS = (10.0, 30.0)


def judge(curves: list[Curve], holdout: float) -> list[Row]:
    """A row for each moment, and one for the mean of the last tenth."""
    edge = max(c.point.flops for c in curves) / holdout * 1.0001
    hidden, known = ([c for c in curves if (c.point.flops > edge) is above] for above in (True, False))
    found = [(forecast_trajectory(known, c.params, c.point.tokens), c.watched()) for c in hidden]
    rows: list[Row] = []
    for i, share in enumerate((*MOMENTS, "last tenth")):
        pairs = [(moments[i], float(measured[i])) for moments, measured in found]
        held = {f"inside_{p}": np.mean([m.intervals[p][0] <= y <= m.intervals[p][1] for m, y in pairs]) for p in (50, 80, 95)}
        errors = [100 * abs(np.log(m.median / y)) for m, y in pairs]
        width = np.mean([100 * np.log(m.intervals[80][1] / m.intervals[80][0]) for m, _ in pairs])
        rows.append({
            "case": "moment", "holdout": holdout, "share": share, "known": len(known), "hidden": len(hidden),
            "mean_abs_error_pct": float(np.mean(errors)), "width_80_pct": float(width), **{k: float(v) for k, v in held.items()},
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def reruns(curves: list[Curve]) -> Row:
    """Mean difference in percent between runs that differ in their seed: at the end, and over the last tenth."""
    by_name = {c.run: c for c in curves}
    pairs = [(c, by_name[f"{c.run}-rerun"]) for c in curves if f"{c.run}-rerun" in by_name]
    difference = np.mean([100 * np.abs(np.log(a.watched()[-2:] / b.watched()[-2:])) for a, b in pairs], 0)
    return {"case": "reruns", "pairs": len(pairs), "end_pct": float(difference[0]), "last_tenth_pct": float(difference[1])}


def headline(rows: list[Row]) -> Headline:
    along = [r for r in rows if r["case"] == "moment" and r["holdout"] == 10 and r["share"] != "last tenth"]
    error, held = (float(np.mean([r[name] for r in along])) for name in ("mean_abs_error_pct", "inside_80"))
    yield (
        f"OLMo ladder, loss along {along[0]['hidden']} runs forecast from 1/10 of the compute, from a tenth of the run on",
        f"mean error {error:.2f} %, 80 % band held in {held:.0%}",
    )


def main() -> None:
    options(__doc__).parse_args()
    curves = read_curves(TABLE)
    rows = [row for holdout in HOLDOUTS for row in judge(curves, holdout)]
    rows.append(reruns(curves))
    print(rows[-1])
    write_results("trajectory", rows, headline(rows))


if __name__ == "__main__":
    main()
