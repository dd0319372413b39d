"""How good rankers are beside what needs no model: seeds of a family on one split, or on cuts that roll through time.

    python -m bench.rank.accuracy movielens-100k --split leave-one-out --seeds 0 1 2
    python -m bench.rank.accuracy movielens-100k --cuts 8
    python -m bench.rank.accuracy ml-1m.txt --split leave-one-out --width 64 --layers 4 --seq-len 200 --epochs 100

The last is the form of the SASRec repositories: `user item` a line, in the order of time.
"""

import json
import subprocess
from pathlib import Path
from statistics import mean

from bench.harness import TENFOLD, Row, options, write_results

PASSED = ("family", "width", "layers", "seq_len", "epochs", "learning_rate", "loss", "dropout", "objectives")


def one(source: str, seed: int, asked: Row, cuts: int, home: Path) -> Row:
    """Train and compare with one seed, as a person would; what is trained already is not trained again."""
    out = home / f"{Path(source).stem}-{asked['family']}-{asked['split']}-{seed}"
    given = [part for name in PASSED if asked[name] is not None for part in (f"--{name.replace('_', '-')}", str(asked[name]))]
    train = ["rank", "train", source, "--home", str(home), "--out", str(out), "--seed", str(seed), "--split", asked["split"]]
    subprocess.run([*TENFOLD, *train, *given, "--json"], check=True, stdout=subprocess.DEVNULL)
    compare = ["rank", "compare", str(out), "--home", str(home), "--json", *(["--cuts", str(cuts)] if cuts else [])]
    found = json.loads(subprocess.run([*TENFOLD, *compare], check=True, stdout=subprocess.PIPE).stdout)
    return {"seed": seed, **found}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("source")
    parser.add_argument("--split", default="temporal")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cuts", type=int, default=0)
    parser.add_argument("--home", type=Path, default=Path("generations"))
    parser.add_argument("--name", default="rank_accuracy")
    for name in PASSED:
        parser.add_argument(f"--{name.replace('_', '-')}", default="hstu" if name == "family" else None)
    asked = vars(parser.parse_args())
    rows = [one(asked["source"], seed, asked, asked["cuts"], asked["home"]) for seed in asked["seeds"]]
    scores = {m: mean(row["scores"]["model"][m] for row in rows) for m in ("hit_rate_10", "ndcg_10")}
    least = {m: min(d[m]["low"] for row in rows for d in row["model_above"].values()) for m in scores}
    headline = [
        (f"{asked['source']}, {rows[0]['split']}", f"HR@10 {scores['hit_rate_10']:.4f}, NDCG@10 {scores['ndcg_10']:.4f}"),
        ("least above any baseline (low end of 95 %)", f"{least['hit_rate_10']:+.4f}, {least['ndcg_10']:+.4f}"),
    ]
    write_results(asked["name"], rows, headline)


if __name__ == "__main__":
    main()
