"""Does the rule of `train/optim/hyperparameters.py` carry over? Two images and their numbers.

    python -m bench.train.transfer coordinates     # sizes of activations and logits over widths, after 0 to 8 steps
    python -m bench.train.transfer optimum         # loss over learning rate at two widths, and at two horizons
    python -m bench.train.transfer optimum --family llama4     # the same for models with experts

Writes `bench/results/transfer.json` and `docs/coordinates.png`, `docs/optimum.png`. Runs that are measured already
are kept. Each run has one thread; as many run side by side as there are cores.
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
SHARES = tuple(2.0 ** (k / 2) for k in range(-4, 4))  # of the rule's learning rate
IMAGES = ROOT / "docs"


def coordinates(corpus_directory: str, width: int, seed: int, base_rule: bool) -> list[dict]:
    """Root mean square of the last hidden state and of the logits' change since the start, by step."""
    import torch

    from tenfold.data.text.batches import train_batch
    from tenfold.data.text.corpus import open_corpus
    from tenfold.model.llama import Llama
    from tenfold.spec.shapes import llama_shape
    from tenfold.train.optim.hyperparameters import derive
    from tenfold.train.optim.optimizer import make_optimizers

    torch.set_num_threads(1)
    corpus = open_corpus(Path(corpus_directory))
    spec = llama_shape(width, corpus.vocab_size)
    h = derive(1_000_000, 256)
    torch.manual_seed(seed)
    model = Llama(spec)
    optimizers = make_optimizers(model, spec, h, "muon" if base_rule else "adamw")
    probe = torch.from_numpy(train_batch(corpus, 10**6, batch_size=4, seq_len=256, seed=seed).tokens)
    rows, first = [], None
    for step in range(STEPS + 1):
        with torch.no_grad():
            hidden = model.hidden(probe)
            logits = model(probe)
            first = logits if first is None else first
            rows.append(
                {
                    "case": "coordinates",
                    "optimizer": "muon" if base_rule else "adamw",
                    "width": width,
                    "seed": seed,
                    "step": step,
                    "residual_rms": _rms(_residual(model, probe)),
                    "hidden_rms": _rms(hidden),
                    "logits_rms": _rms(logits),
                    "logits_change_rms": _rms(logits - first),
                }
            )
        batch = train_batch(corpus, step, batch_size=h.batch_size, seq_len=256, seed=seed)
        total, _ = model.loss(torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets))
        (total / int((batch.targets >= 0).sum())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
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


def run(corpus_directory: str, optimizer: str, width: int, tokens: int, share: float, seed: int, family: str) -> dict:
    """Validation loss of one run at `share` of the rule's learning rate."""
    import torch

    from tenfold.data.text.corpus import open_corpus
    from tenfold.spec.shapes import shape_of
    from tenfold.train.config import RunConfig
    from tenfold.train.optim.hyperparameters import derive
    from tenfold.train.trainer import train

    torch.set_num_threads(1)
    corpus = open_corpus(Path(corpus_directory))
    rule = derive(shape_of(family, width, corpus.vocab_size), tokens, 256)
    config = RunConfig(
        tokens=tokens,
        model={"width": width, "family": family},
        seq_len=256,
        optimizer=optimizer,
        seed=seed,
        learning_rate=rule.learning_rate * share,
        evaluate_tokens=98_304,
        checkpoint_every_s=math.inf,
    )
    with tempfile.TemporaryDirectory() as directory:
        result = train(config, corpus, Path(directory), quiet=True, keep_model=False)
    return {
        "case": "optimum",
        "optimizer": optimizer,
        "family": family,
        "width": width,
        "tokens": tokens,
        "share": share,
        "seed": seed,
        "loss": result.loss,
        "learning_rate": config.learning_rate,
    }


def case_of(row: dict) -> tuple[str, str, int, int]:
    """What a row's learning rate is swept for; rows without a family are dense."""
    return row.get("family", "llama3"), row["optimizer"], row["width"], row["tokens"]


def best_share(rows: list[dict]) -> float:
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
    names = (f"{'experts' if f == 'llama4' else 'dense'}, width {width}, {tokens / 1e6:g}M tokens" for f, _, width, tokens in best)
    yield f"best learning rate beside the rule's: {'; '.join(names)}", "; ".join(f"{share:.2f}x" for share in best.values())


def draw_coordinates(rows: list[dict]) -> None:
    import matplotlib.pyplot as plt

    names = {"residual_rms": "residual stream", "logits_rms": "logits", "logits_change_rms": "logits, change since the start"}
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), constrained_layout=True)
    for axis, (name, title) in zip(axes, names.items(), strict=True):
        for step in (0, 1, 2, 4, 8):
            if step == 0 and "change" in name:
                continue
            here = [r for r in rows if r["step"] == step and r["optimizer"] == "muon"]
            mean = [np.mean([r[name] for r in here if r["width"] == w]) for w in WIDTHS]
            axis.plot(WIDTHS, mean, "o-", label=f"step {step}", color=plt.get_cmap("viridis")(step / 9))
        axis.set(xscale="log", yscale="log", xlabel="width", title=f"{title} (root mean square)")
        axis.set_xticks(WIDTHS, [str(w) for w in WIDTHS])
        axis.minorticks_off()
    axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(IMAGES / "coordinates.png", dpi=110)


def draw_optimum(rows: list[dict]) -> None:
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
    axis.set(xscale="log", xlabel="learning rate, beside the rule's", ylabel="validation loss, beside the lowest", ylim=(0.998, 1.08))  # noqa: E501
    axis.set_xticks(SHARES, [f"{s:.2f}" for s in SHARES])
    axis.minorticks_off()
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    figure.savefig(IMAGES / "optimum.png", dpi=110)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("what", choices=["coordinates", "optimum", "draw"])
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--family", default="llama3", help="llama3 (dense) or llama4 (experts)")
    parser.add_argument("--cases", nargs="+", default=["muon:48:500000", "muon:128:500000", "muon:48:2000000"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--home", type=Path, default=Path("build/transfer"))
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
            for found in pool.map(coordinates, *zip(*[(directory, w, s, True) for w in WIDTHS for s in given.seeds], strict=True)):
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
    IMAGES.mkdir(exist_ok=True)
    if seen := [r for r in rows if r["case"] == "coordinates"]:
        draw_coordinates(seen)
    if seen := [r for r in rows if r["case"] == "optimum"]:
        draw_optimum(seen)
        for case in sorted({case_of(r) for r in seen}):
            print(case, round(best_share([r for r in seen if case_of(r) == case]), 3))


if __name__ == "__main__":
    main()
