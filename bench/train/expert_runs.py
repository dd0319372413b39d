"""Choices in training with experts, one at a time, at equal compute over seeds: balancing, multi-token prediction, upcycling.

    python -m bench.train.expert_runs --flops 5e11 --seeds 0 1 2

Every case is trained for the same FLOPs on the same corpus. The FLOPs of multi-token prediction count in full in the case
`ahead`; in `ahead, equal tokens` they do not count, so that it sees as many tokens. The upcycled model and the dense model that
it came from are both trained on from the dense run for as many FLOPs again. A row has the difference to the case it is compared
with, over runs of the same seed, with the 95 % interval of the mean (Student's t).
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

from bench.harness import Headline, Row, change_pct, options, percent, rows_of, write_results


@dataclass(frozen=True)
class Case:
    name: str
    beside: str
    settings: dict = field(default_factory=dict)


EXPERTS = {"model": {"family": "llama4"}}
CASES = (
    Case("dense", "dense", {"model": {"family": "llama3"}}),
    Case("experts", "dense", EXPERTS),
    Case("balance by a loss", "experts", EXPERTS | {"task": {"load_balancing": "aux_loss"}}),
    Case("no balance", "experts", EXPERTS | {"task": {"load_balancing": "none"}}),
    Case("ahead", "experts", EXPERTS | {"task": {"mtp": 1}}),
    Case("ahead, equal tokens", "experts", EXPERTS | {"task": {"mtp": 1}}),
    Case("dense, trained on", "dense, trained on", {"init_from": "dense"}),
    Case("upcycled, trained on", "dense, trained on", {"init_from": "upcycled"}),
)


def run(corpus_directory: str, home: str, case: Case, flops: float, seed: int) -> Row:
    import torch

    from tenfold.data.text.corpus import open_corpus
    from tenfold.model.mtp import mtp_weights
    from tenfold.spec.shapes import shape_for_flops
    from tenfold.train.metrics import read_metrics
    from tenfold.train.resolve import resolve_model
    from tenfold.train.result import read_result
    from tenfold.train.run_file import config_from_fields
    from tenfold.train.tasks.pretrain import pretrain

    torch.set_num_threads(1)
    corpus = open_corpus(Path(corpus_directory))
    settings = dict(case.settings)
    folder = Path(home) / f"{flops:.0e}-{seed}"
    if "init_from" in settings:
        settings["init_from"] = str(_start(folder, settings["init_from"]))
    else:
        spec, tokens, *_ = shape_for_flops(flops, corpus.vocab_size, 256, family=settings["model"]["family"])
        settings["model"] = {"width": spec.dim, "family": spec.family}
        if case.name == "ahead":
            settings["tokens"] = round(flops / (spec.train_flops_per_token(256) + 6 * mtp_weights(spec, 1)))
        else:
            settings["tokens"] = tokens
    if "tokens" not in settings:
        settings["flops"] = flops
    settings["task"] = {**settings.get("task", {}), "evaluate_tokens": 98_304}
    config = config_from_fields({**settings, "seed": seed}, case.name)
    directory = folder / case.name.replace(", ", "-").replace(" ", "-")
    result = read_result(directory) or pretrain(config, corpus, directory, quiet=True)
    steps = [e for e in read_metrics(directory / "run.jsonl") if e["event"] == "step"]
    return {
        "case": case.name,
        "seed": seed,
        "flops": result.flops,
        "tokens": result.tokens,
        "parameters": resolve_model(config, corpus.vocab_size)[0].parameters().total,
        "bits_per_byte": result.bits_per_byte,
        "tokens_per_s": result.tokens_per_s,
        **{k: steps[-1][k] for k in ("expert_entropy", "expert_load_max", "dead_experts") if k in steps[-1]},
    }


def _start(folder: Path, kind: str) -> Path:
    """The dense run's model, or the model that it is upcycled to."""
    dense = folder / "dense" / "model"
    if kind == "dense":
        return dense
    from tenfold.model.commands import upcycle

    out = folder / "upcycled"
    if not (out / "config.json").exists():
        upcycle(dense, out=out, experts=16)
    return out


def summary(rows: list[Row], case: Case, flops: float) -> Row:
    loss = {name: {r["seed"]: r["bits_per_byte"] for r in rows if r["case"] == name} for name in (case.name, case.beside)}
    seeds = sorted(loss[case.name].keys() & loss[case.beside].keys())
    change, interval = change_pct([loss[case.name][s] / loss[case.beside][s] for s in seeds])
    return {
        "case": f"{case.name} beside {case.beside}",
        "asked_flops": flops,
        "seeds": seeds,
        "bits_per_byte": mean(loss[case.name][s] for s in seeds),
        "difference_pct": change,
        "interval_95": interval,
    }


def headline(rows: list[Row]) -> Headline:
    shown = [r for r in rows if r.get("interval_95")]
    if shown:
        flops, seeds = f"{shown[0]['asked_flops']:.0e}", len(shown[0]["seeds"])
        cases = "; ".join(r["case"] for r in shown)
        figures = "; ".join(percent(r["difference_pct"], r["interval_95"]) for r in shown)
        yield f"{flops} FLOPs, bits per byte, {seeds} seeds: {cases}", figures


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--flops", type=float, default=5e11)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cases", nargs="+", default=[c.name for c in CASES])
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--home", type=Path, default=Path("build/expert-runs"))
    given = parser.parse_args()

    from tenfold.data.text.corpus import build

    corpus = build("stdlib", given.home / "corpus-stdlib-2048", vocab_size=2048)
    rows = [r for r in rows_of("expert_runs") if "seed" in r]
    rows = [r | {"asked_flops": r.get("asked_flops", given.flops)} for r in rows]
    os.environ["OMP_NUM_THREADS"] = "1"
    wanted = [c for c in CASES if c.name in given.cases]
    # Cases that start from another run are trained after it.
    for stage in ([c for c in wanted if "init_from" not in c.settings], [c for c in wanted if "init_from" in c.settings]):
        with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
            done = {(r["case"], r["seed"], r["asked_flops"]) for r in rows}
            jobs = [(c, s) for s in given.seeds for c in stage if (c.name, s, given.flops) not in done]
            futures = [pool.submit(run, str(corpus.directory), str(given.home), c, given.flops, s) for c, s in jobs]
            for future in futures:
                rows.append(future.result() | {"asked_flops": given.flops})
                print(json.dumps(rows[-1]), flush=True)
                here = [r for r in rows if r["asked_flops"] == given.flops]
                names = {r["case"] for r in here}
                compared = [summary(here, c, given.flops) for c in CASES if c.name != c.beside and {c.name, c.beside} <= names]
                write_results("expert_runs", [*rows, *compared], headline(compared))
    for line in rows_of("expert_runs"):
        if "difference_pct" in line:
            print(json.dumps(line))


if __name__ == "__main__":
    main()
