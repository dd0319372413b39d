"""Climbs over corpora and seeds: errors of the forecasts, and how often their intervals held.

    python -m bench.scale.climbs --corpora stdlib torch-headers docstrings --seeds 0 1 2 3 --jobs 2

Each climb runs in its own process; `--jobs` climbs run at once and share the cores. Climbs that are in the results already are not
repeated.
"""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import mean

from bench.harness import TENFOLD, Headline, Row, options, rows_of, write_results
from tenfold.scale.options import ClimbSettings

VOCABULARY = ClimbSettings().vocab_size


def climb(corpus: str, seed: int, top: str, home: Path, threads: int) -> Row:
    """One climb in its own home; the corpus is shared by a symbolic link."""
    own = home / f"{corpus}-{top}-{seed}"
    own.mkdir(parents=True, exist_ok=True)
    shared = home / f"corpus-{corpus}-{VOCABULARY}"
    link = own / shared.name
    if not link.exists():
        link.symlink_to(shared.resolve())
    command = [*TENFOLD, "climb", "--home", str(own), "--corpus", corpus, "--top", top, "--seed", str(seed), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{corpus}, seed {seed}: {done.stderr[-500:]}")
    scores = json.loads(done.stdout)["scores"]
    loss = scores["loss_bits_per_byte"]
    return {
        "corpus": corpus,
        "seed": seed,
        "top_flops": float(top),
        "forecast_bits_per_byte": loss["forecast"],
        "measured_bits_per_byte": loss["measured"],
        "error_pct": loss["error_pct"],
        "inside_50": loss["inside_50"],
        "inside_80": loss["inside_80"],
        "inside_95": loss["inside_95"],
        "tokens_per_s_error_pct": scores["tokens_per_s"]["error_pct"],
        "seconds_error_pct": scores["seconds"]["error_pct"],
        "energy_error_pct": scores["energy_kwh"]["error_pct"],
    }


def headline(rows: list[Row]) -> Headline:
    corpora = sorted({r["corpus"] for r in rows})
    by_corpus = ", ".join(f"{c} {mean(abs(r['error_pct']) for r in rows if r['corpus'] == c):.1f} %" for c in corpora)
    what = f"{len(rows)} climbs ({len(corpora)} corpora, {rows[0]['top_flops']:.0e} FLOPs): error of the forecast loss, mean"
    yield what, f"{mean(abs(r['error_pct']) for r in rows):.2f} % ({by_corpus})"
    speed = mean(abs(r["tokens_per_s_error_pct"]) for r in rows)
    inside = f"{sum(r['inside_80'] for r in rows)} of {len(rows)}"
    yield "the same: loss inside the 80 % interval; error of the forecast speed, mean", f"{inside}; {speed:.1f} %"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--corpora", nargs="+", default=["stdlib", "torch-headers", "docstrings"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--top", default="5e12")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--home", type=Path, default=Path("build/climbs"))
    given = parser.parse_args()
    rows = rows_of("climbs")
    done = {(r["corpus"], r["seed"], r["top_flops"]) for r in rows}
    wanted = [(c, s) for s in given.seeds for c in given.corpora if (c, s, float(given.top)) not in done]
    for corpus in given.corpora:
        out = given.home / f"corpus-{corpus}-{VOCABULARY}"
        subprocess.run([*TENFOLD, "data", "build", corpus, "--out", str(out), "--json"], check=True, stdout=subprocess.DEVNULL)
    threads = max(1, len(os.sched_getaffinity(0)) // given.jobs)
    with ThreadPoolExecutor(given.jobs) as pool:
        futures = [pool.submit(climb, c, s, given.top, given.home, threads) for c, s in wanted]
        for future in as_completed(futures):
            rows.append(future.result())
            write_results("climbs", rows, headline(rows))
            print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
