"""Dense and expert climbs at equal compute: is the expert model better, and was it forecast?

    python bench/expert_climbs.py --top 5e12 --seeds 0 1 2

A dense climb and one with experts in one home for each seed, one after the other; a row has both forecasts, both outcomes,
and the differences with their 80 % intervals. The last row has the mean difference over the seeds with its 95 % interval
(Student's t). What is measured already is not measured again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from results_file import RESULTS, write_results
from scipy import stats

from tenfold.scale.beside import comparison

TENFOLD = Path(sys.executable).with_name("tenfold")


def climbs(corpus: str, seed: int, top: str, home: Path) -> dict:
    own = home / f"{corpus}-{top}-{seed}"
    scores = {}
    for name, family in (("g1", "llama3"), ("g2", "llama4")):
        if not (own / name / "score.json").exists():
            asked = ["--home", own, "--corpus", corpus, "--top", top, "--seed", seed, "--family", family, "--json"]
            done = subprocess.run([str(c) for c in (TENFOLD, "climb", *asked)], capture_output=True, text=True)
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


def over_seeds(rows: list[dict]) -> dict:
    """The mean difference of runs with the same seed, in percent, and its 95 % interval."""
    logs = np.log([r["measured_bits_per_byte"]["experts"] / r["measured_bits_per_byte"]["dense"] for r in rows])
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5 if len(logs) > 1 else np.nan
    return {
        "case": "over seeds",
        "seeds": [r["seed"] for r in rows],
        "top_flops": rows[0]["top_flops"],
        "experts_beside_dense_pct": 100 * np.expm1(logs.mean()),
        "interval_95": [100 * np.expm1(logs.mean() + s * half) for s in (-1, 1)] if len(logs) > 1 else None,
        "mean_abs_forecast_error_pct_experts": float(np.mean([abs(r["error_pct"]["llama4"]) for r in rows])),
        "mean_abs_forecast_error_pct_dense": float(np.mean([abs(r["error_pct"]["llama3"]) for r in rows])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--top", default="5e12")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--home", type=Path, default=Path("build/expert-climbs"))
    given = parser.parse_args()
    kept = RESULTS / "expert_climbs.json"
    rows = json.loads(kept.read_text())["rows"] if kept.exists() else []
    rows = [r for r in rows if r["case"] == "climb"]
    for seed in given.seeds:
        key = (given.corpus, seed, float(given.top))
        if key not in {(r["corpus"], r["seed"], r["top_flops"]) for r in rows}:
            rows.append(climbs(given.corpus, seed, given.top, given.home))
        alike = [r for r in rows if (r["corpus"], r["top_flops"]) == (given.corpus, float(given.top))]
        print(json.dumps(rows[-1]), json.dumps(over_seeds(alike)), sep="\n", flush=True)
        write_results("expert_climbs", [*rows, over_seeds(alike)])


if __name__ == "__main__":
    main()
