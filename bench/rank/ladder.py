"""A ladder of rankers on events of known entropy: the loss at ten times the compute, forecast and then measured.

    python -m bench.rank.ladder --users 200000 --length 50 --top 1e13

These settings make 1e7 events. The forecast is compared with "no change", the loss of the ladder's best run.
"""

import csv
import json
import subprocess
from pathlib import Path

import pyarrow.parquet

from bench.harness import TENFOLD, options, write_results


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--top", default="1e13")
    parser.add_argument("--family", default="rank")
    parser.add_argument("--home", type=Path, default=Path("generations/ladder-of-rankers"))
    asked = parser.parse_args()
    source = f"teacher:users={asked.users},length={asked.length},n_items={asked.items}"
    command = ["climb", "--task", "rank", "--family", asked.family, "--corpus", source, "--seq-len", str(asked.length)]
    said = subprocess.run(
        [*TENFOLD, *command, "--top", asked.top, "--home", str(asked.home), "--json"], check=True, stdout=subprocess.PIPE
    )
    found = json.loads(said.stdout)
    generation = Path(found["generation"])
    with (generation / "points.csv").open() as stream:
        best = min(float(row["loss"]) for row in csv.DictReader(stream))
    loss = found["scores"]["loss_nats"]
    events = next(asked.home.glob("interactions-teacher-*")) / "events.parquet"
    entropy = float(pyarrow.parquet.read_table(events, columns=["nats"])["nats"].to_numpy().mean())
    error, promised = abs(loss["measured"] - loss["forecast"]), best - loss["forecast"]
    row = {**loss, "best_of_ladder": best, "entropy": entropy, "share_of_the_promised_gain": error / promised, "source": source}
    four = loss["forecast"], loss["measured"], best, entropy
    headline = [
        ("forecast, measured, ladder's best, entropy", " ".join(f"{x:.4f}" for x in four)),
        ("error as a share of the forecast gain", f"{error / promised:.2f}"),
        ("nearer than no change", "yes" if error < abs(loss["measured"] - best) else "no"),
        ("inside 80 %", "yes" if loss["inside_80"] else "no"),
    ]
    write_results("rank_ladder", [row], headline)


if __name__ == "__main__":
    main()
