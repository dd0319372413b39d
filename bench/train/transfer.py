"""Does the hyperparameter rule of `train/optim/hyperparameters.py` transfer between widths? Two plots and their numbers.

    python -m bench.train.transfer coordinates     # sizes of activations and logits over widths, after 0 to 8 steps
    python -m bench.train.transfer optimum         # loss over learning rate at two widths, and at two horizons
    python -m bench.train.transfer optimum --family llama4     # the same for models with experts

Writes `bench/results/transfer.json` and `docs/coordinates.png`, `docs/optimum.png`. Runs that are in the results already are not
repeated. Each run has one thread; as many runs as there are cores run at once.
"""

import math
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from bench.harness import ROOT, Headline, Row, options, rows_of, write_results

WIDTHS = (32, 64, 128, 256, 512)
STEPS = 8
SHARES = tuple(2.0 ** (k / 2) for k in range(-4, 4))  # factors on the rule's learning rate


def coordinates(corpus_directory: str, width: int, seed: int, optimizer: str) -> list[Row]:
    """For each step, the root mean square of the residual stream, the last hidden state, the logits and the logits' change."""
    import torch

    from tenfold.data.text.batches import train_batch
    from tenfold.data.text.corpus import open_corpus
    from tenfold.model.build import make_model
    from tenfold.train.optim.optimizer import make_optimizers
    from tenfold.train.resolve import resolve
    from tenfold.train.run_file import config_from_fields
    from tenfold.train.skipper import HostStepSkipper
    from tenfold.train.state import RunState
    from tenfold.train.step import Step
    from tenfold.train.tasks.pretrain import Pretraining

    torch.set_num_threads(1)
    corpus = open_corpus(Path(corpus_directory))
    fields = {
        "tokens": 1_000_000, "seed": seed, "device": "cpu", "dtype": "float32", "model": {"width": width},
        "data": {"seq_len": 256, "max_epochs": 1e9}, "optimizer": {"name": optimizer, "warmup": 0.0},
    }  # fmt: skip
    config = config_from_fields(fields, "coordinates")
    task, r = Pretraining(config, corpus, Path(corpus_directory)), resolve(config, corpus.vocab_size)
    torch.manual_seed(seed)
    model = make_model(r.spec)  # all of it drawn: a run begins with zeros in the head, of which step 0 would show nothing
    optimizers = make_optimizers(model, r.spec, r.h, optimizer)
    train_step = Step(task, model, optimizers, HostStepSkipper(RunState(), STEPS), r.h, config.optimizer, r.device)
    probe = torch.from_numpy(train_batch(corpus, 10**6, batch_size=4, seq_len=256, seed=seed).tokens)
    rows, first = [], None
    for step in range(STEPS + 1):
        with torch.no_grad():
            logits = model(probe)
            first = logits if first is None else first
            sizes = {
                "residual_rms": _rms(_residual(model, probe)),
                "hidden_rms": _rms(model.hidden(probe)),
                "logits_rms": _rms(logits),
                "logits_change_rms": _rms(logits - first),
            }
        rows.append({"case": "coordinates", "optimizer": optimizer, "width": width, "seed": seed, "step": step, **sizes})
        batch = task.rows(step, slice(0, r.h.batch_size))
        train_step(batch, step, batch.weight())
    return rows


def _residual(model, tokens):
    """The residual stream before the last norm."""
    caught = []
    handle = model.norm.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    model.hidden(tokens)
    handle.remove()
    return caught[0]


def _rms(x) -> float:
    return float(x.float().square().mean().sqrt())


def run(corpus_directory: str, optimizer: str, width: int, tokens: int, share: float, seed: int, family: str) -> Row:
    """Validation loss of one run at `share` of the rule's learning rate."""
    import torch

    from tenfold.data.text.corpus import open_corpus
    from tenfold.train.optim.hyperparameters import derive
    from tenfold.train.run_file import config_from_fields
    from tenfold.train.tasks.pretrain import pretrain

    torch.set_num_threads(1)
    corpus = open_corpus(Path(corpus_directory))
    learning_rate = share * derive(tokens, 256).learning_rate
    fields = {
        "tokens": tokens, "seed": seed, "model": {"width": width, "family": family}, "task": {"evaluate_tokens": 98_304},
        "data": {"seq_len": 256}, "optimizer": {"name": optimizer, "learning_rate": learning_rate},
        "checkpoint": {"every_s": math.inf},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        result = pretrain(config_from_fields(fields, "optimum"), corpus, Path(directory), quiet=True, keep_model=False)
    return {
        "case": "optimum",
        "optimizer": optimizer,
        "family": family,
        "width": width,
        "tokens": tokens,
        "share": share,
        "seed": seed,
        "loss": result.loss,
        "learning_rate": learning_rate,
    }


def case_of(row: Row) -> tuple[str, str, int, int]:
    """(family, optimizer, width, tokens): what a learning rate is swept for. Rows without a family are dense."""
    return row.get("family", "llama3"), row["optimizer"], row["width"], row["tokens"]


def best_share(rows: list[Row]) -> float:
    """The minimum of a parabola through log loss over log share, around the lowest mean over seeds."""
    shares = sorted({r["share"] for r in rows})
    loss = [float(np.mean([r["loss"] for r in rows if r["share"] == s])) for s in shares]
    i = min(max(int(np.argmin(loss)), 2), len(shares) - 3)
    near = slice(i - 2, i + 3)
    a, b, _ = np.polyfit(np.log(shares[near]), np.log(loss[near]), 2)
    return float(np.exp(np.clip(-b / (2 * a), np.log(shares[0]), np.log(shares[-1]))))


def headline(rows: list[Row]) -> Headline:
    optima = [r for r in rows if r["case"] == "optimum"]
    best = {case: best_share([r for r in optima if case_of(r) == case]) for case in sorted({case_of(r) for r in optima})}
    if not best:
        return
    names = (f"{'experts' if f == 'llama4' else 'dense'}, width {width}, {tokens / 1e6:g}M tokens" for f, _, width, tokens in best)
    yield f"best learning rate beside the rule's: {'; '.join(names)}", "; ".join(f"{share:.2f}x" for share in best.values())


def draw_coordinates(rows: list[Row], folder: Path) -> None:
    import matplotlib.pyplot as plt

    widths = sorted({r["width"] for r in rows})
    names = {"residual_rms": "residual stream", "logits_rms": "logits", "logits_change_rms": "logits, change since the start"}
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), constrained_layout=True)
    for axis, (name, title) in zip(axes, names.items(), strict=True):
        for step in (0, 1, 2, 4, 8):
            if step == 0 and "change" in name:
                continue
            here = [r for r in rows if r["step"] == step and r["optimizer"] == "muon"]
            mean = [np.mean([r[name] for r in here if r["width"] == w]) for w in widths]
            axis.plot(widths, mean, "o-", label=f"step {step}", color=plt.get_cmap("viridis")(step / 9))
        axis.set(xscale="log", yscale="log", xlabel="width", title=f"{title} (root mean square)")
        axis.set_xticks(widths, [str(w) for w in widths])
        axis.minorticks_off()
    axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(folder / "coordinates.png", dpi=110)


def draw_optimum(rows: list[Row], folder: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), constrained_layout=True)
    for i, case in enumerate(sorted({case_of(r) for r in rows})):
        family, optimizer, width, tokens = case
        here = [r for r in rows if case_of(r) == case]
        shares = sorted({r["share"] for r in here})
        loss = [np.mean([r["loss"] for r in here if r["share"] == s]) for s in shares]
        best = best_share(here)
        kind = "experts" if family == "llama4" else "dense"
        label = f"{kind}, {optimizer}, width {width}, {tokens / 1e6:g}M tokens: best at {best:.2f}x"
        axis.plot(shares, np.array(loss) / min(loss), "o-", label=label, color=f"C{i}")
        axis.axvline(best, color=f"C{i}", lw=0.8, ls=":")
    axis.set(
        xscale="log", xlabel="learning rate, beside the rule's", ylabel="validation loss, beside the lowest", ylim=(0.998, 1.08)
    )
    axis.set_xticks(SHARES, [f"{s:.2f}" for s in SHARES])
    axis.minorticks_off()
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    figure.savefig(folder / "optimum.png", dpi=110)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("what", choices=["coordinates", "optimum", "draw"])
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--family", default="llama3", help="llama3 (dense) or llama4 (experts)")
    usual = ["muon:48:500000", "muon:128:500000", "muon:48:2000000"]
    parser.add_argument("--cases", nargs="+", default=usual, help="OPTIMIZER:WIDTH:TOKENS, for `optimum`")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--widths", nargs="+", type=int, default=list(WIDTHS), help="widths for `coordinates`")
    parser.add_argument("--home", type=Path, default=Path("build/transfer"))
    parser.add_argument("--plots", type=Path, default=ROOT / "docs", help="the folder for the plots")
    given = parser.parse_args()

    from tenfold.data.text.corpus import build

    rows = rows_of("transfer")
    command = "python -m bench.train.transfer coordinates; python -m bench.train.transfer optimum"
    corpus = build(given.corpus, given.home / f"corpus-{given.corpus}-2048", vocab_size=2048)
    directory = str(corpus.directory)
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
        if given.what == "coordinates":
            rows = [r for r in rows if r["case"] != "coordinates"]
            wanted = [(directory, width, seed, "muon") for width in given.widths for seed in given.seeds]
            for found in pool.map(coordinates, *zip(*wanted, strict=True)):
                rows += found
            write_results("transfer", rows, headline(rows), command)
        elif given.what == "optimum":
            done = {(case_of(r), r["share"], r["seed"]) for r in rows if r["case"] == "optimum"}
            cases = [(o, int(w), int(float(t))) for o, w, t in (case.split(":") for case in given.cases)]
            jobs = [(case, share, seed) for case in cases for seed in given.seeds for share in SHARES]
            futures = [
                pool.submit(run, directory, *case, share, seed, given.family)
                for case, share, seed in jobs
                if ((given.family, *case), share, seed) not in done
            ]
            for future in futures:
                rows.append(future.result())
                write_results("transfer", rows, headline(rows), command)
                print({k: rows[-1][k] for k in ("family", "optimizer", "width", "tokens", "share", "seed", "loss")}, flush=True)
    given.plots.mkdir(parents=True, exist_ok=True)
    if seen := [r for r in rows if r["case"] == "coordinates"]:
        draw_coordinates(seen, given.plots)
    if seen := [r for r in rows if r["case"] == "optimum"]:
        draw_optimum(seen, given.plots)
        for case in sorted({case_of(r) for r in seen}):
            print(case, round(best_share([r for r in seen if case_of(r) == case]), 3))


if __name__ == "__main__":
    main()
