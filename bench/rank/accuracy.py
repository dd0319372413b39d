"""Accuracy of rankers compared with baselines: several seeds of a family on one split, or on cuts that roll through time.

    python -m bench.rank.accuracy movielens-100k --split leave-one-out --seeds 0 1 2
    python -m bench.rank.accuracy movielens-100k --cuts 8
    python -m bench.rank.accuracy ml-1m.txt --split leave-one-out --width 64 --layers 4 --seq-len 200 --epochs 100

The last file has the format of the SASRec repositories: `user item` per line, in the order of time. `--rectools` names the Python
of an environment with RecTools (see `bench.rank.speed`); its SASRec and HSTU of the same shape are then trained and tested too.
"""

import json
import subprocess
from pathlib import Path
from statistics import mean

from bench.harness import TENFOLD, Row, options, write_results
from bench.rank.rivals import KINDS, Training, rival
from tenfold.rank.compare import ABOVE, open_trained
from tenfold.rank.metrics import difference, evaluate, pooled, summary
from tenfold.rank.options import USERS_PER_STEP

PASSED = ("family", "width", "layers", "seq_len", "epochs", "learning_rate", "loss", "dropout", "objectives")


def beside(runs: list[Path], home: Path, asked: Row, seed: int) -> Row:
    """Scores of RecTools' models on the splits of these runs, pooled, and the differences of our models to them."""
    found: Row = {"scores": {}, "model_above": {}, "epochs": {}}
    opened = [open_trained(run, home) for run in runs]
    ours = pooled([evaluate(one.scorer, one.interactions, one.interactions.held_out("test")) for one in opened])
    spec, data = opened[0].model.spec, opened[0].config.data
    shape = spec.dim, spec.n_layers, data.seq_len, data.batch_size or USERS_PER_STEP
    training = Training(asked["rectools"], shape, asked["rival_epochs"] // asked["rival_stops"], asked["rival_stops"])
    for kind in KINDS:
        tests, epochs = zip(*(rival(kind, one.interactions, training, seed) for one in opened), strict=True)
        test, name = pooled(list(tests)), f"rectools_{kind}"
        found["scores"][name], found["epochs"][name] = summary(test), epochs
        found["model_above"][name] = {measure: difference(ours, test, measure) for measure in ABOVE}
    return found


def one(source: str, seed: int, asked: Row, cuts: int, home: Path) -> Row:
    """Train and compare with one seed, by the commands of a user; an existing run is not trained again."""
    out = home / f"{Path(source).stem}-{asked['family']}-{asked['split']}-{seed}"
    given = [part for name in PASSED if asked[name] is not None for part in (f"--{name.replace('_', '-')}", str(asked[name]))]
    train = ["rank", "train", source, "--home", str(home), "--out", str(out), "--seed", str(seed), "--split", asked["split"]]
    subprocess.run([*TENFOLD, *train, *given, "--json"], check=True, stdout=subprocess.DEVNULL)
    compare = ["rank", "compare", str(out), "--home", str(home), "--json", *(["--cuts", str(cuts)] if cuts else [])]
    found = json.loads(subprocess.run([*TENFOLD, *compare], check=True, stdout=subprocess.PIPE).stdout)
    if asked["rectools"]:
        rivals = beside([out / "cuts" / str(n) for n in range(cuts)] or [out], home, asked, seed)
        found = found | {name: found.get(name, {}) | of for name, of in rivals.items()}
    return {"seed": seed, **found}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("source")
    parser.add_argument("--split", default="temporal")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cuts", type=int, default=0)
    parser.add_argument("--home", type=Path, default=Path("generations"))
    parser.add_argument("--rectools", help="the Python interpreter of an environment with RecTools")
    parser.add_argument("--rival-epochs", type=int, default=100)
    parser.add_argument("--rival-stops", type=int, default=10, help="stops; the best on the validation is tested")
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
    for name in (f"rectools_{kind}" for kind in KINDS if asked["rectools"]):
        theirs = {m: mean(row["scores"][name][m] for row in rows) for m in scores}
        headline.append((f"{name}, the same split", f"HR@10 {theirs['hit_rate_10']:.4f}, NDCG@10 {theirs['ndcg_10']:.4f}"))
    write_results(asked["name"], rows, headline)


if __name__ == "__main__":
    main()
