"""Dense and expert climbs at equal compute: is the expert model better, and was that forecast?

    python -m bench.scale.expert_climbs --top 5e12 --seeds 0 1 2

For each seed, a dense climb and one with experts run in one home, one after the other. A row has both forecasts, both outcomes, and
the differences with their 80 % intervals. The last row has the mean difference over the seeds with its 95 % interval (Student's t).
Climbs that are in the results already are not repeated.
"""

import json
import subprocess
from pathlib import Path
from statistics import mean

from bench.harness import TENFOLD, Headline, Row, change_pct, options, percent, rows_of, write_results
from tenfold.scale.beside import comparison


def climbs(corpus: str, seed: int, top: str, home: Path) -> Row:
    own = home / f"{corpus}-{top}-{seed}"
    scores = {}
    for name, family in (("g1", "llama3"), ("g2", "llama4")):
        if not (own / name / "score.json").exists():
            asked = ["--home", str(own), "--corpus", corpus, "--top", top, "--seed", str(seed), "--family", family, "--json"]
            done = subprocess.run([*TENFOLD, "climb", *asked], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{family}, seed {seed}: {done.stderr[-500:]}")
        scores[family] = json.loads((own / name / "score.json").read_text())["scores"]["loss_bits_per_byte"]
    found = comparison(own / "g1", own / "g2")
    return {
        "case": "climb",
        "corpus": corpus,
        "seed": seed,
        "top_flops": float(top),
        "forecast_bits_per_byte": found["forecast"],
        "measured_bits_per_byte": found["measured"],
        "forecast_difference": found["forecast_difference"],
        "measured_difference": found["measured_difference"],
        "error_pct": {family: s["error_pct"] for family, s in scores.items()},
        "inside_80": {family: s["inside_80"] for family, s in scores.items()},
        "sparsity": found["sparsity"],
    }


def over_seeds(rows: list[Row]) -> Row:
    """The mean difference of runs with the same seed, in percent, and its 95 % interval."""
    measured = [r["measured_bits_per_byte"] for r in rows]
    change, interval = change_pct([m["experts"] / m["dense"] for m in measured])
    return {
        "case": "over seeds",
        "seeds": [r["seed"] for r in rows],
        "top_flops": rows[0]["top_flops"],
        "experts_beside_dense_pct": change,
        "interval_95": interval,
        "mean_abs_forecast_error_pct_experts": mean(abs(r["error_pct"]["llama4"]) for r in rows),
        "mean_abs_forecast_error_pct_dense": mean(abs(r["error_pct"]["llama3"]) for r in rows),
    }


def headline(rows: list[Row]) -> Headline:
    for r in rows:
        if r["case"] == "over seeds" and r["interval_95"]:
            what = f"experts beside dense at {r['top_flops']:.0e} FLOPs, bits per byte, {len(r['seeds'])} climbs of each"
            change = percent(r["experts_beside_dense_pct"], r["interval_95"])
            error = r["mean_abs_forecast_error_pct_experts"]
            yield f"{what}; error of the experts' forecast, mean", f"{change}; {error:.2f} %"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--top", default="5e12")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--home", type=Path, default=Path("build/expert-climbs"))
    given = parser.parse_args()
    rows = [r for r in rows_of("expert_climbs") if r["case"] == "climb"]
    for seed in given.seeds:
        key = (given.corpus, seed, float(given.top))
        if key not in {(r["corpus"], r["seed"], r["top_flops"]) for r in rows}:
            rows.append(climbs(given.corpus, seed, given.top, given.home))
        alike = [r for r in rows if (r["corpus"], r["top_flops"]) == (given.corpus, float(given.top))]
        found = [*rows, over_seeds(alike)]
        print(json.dumps(rows[-1]), json.dumps(found[-1]), sep="\n", flush=True)
        write_results("expert_climbs", found, headline(found))


if __name__ == "__main__":
    main()
