"""Every layout beside one process: losses, gradient norms and weights in double precision; and checkpoints between layouts.

    python bench/layouts.py

A row per layout and model says how far 10 steps are from those of one process (weights as they are exported, in float32). A row
per pair of layouts says whether the second, on the same processes, loads weights and optimizers of the first to the bit.
"""

import argparse
import math
import multiprocessing
import os
import shutil
import socket
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from results_file import write_results
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

from tenfold.data.text.corpus import build, open_corpus
from tenfold.model.build import make_model
from tenfold.spec.model import ModelSpec
from tenfold.train import checkpoint
from tenfold.train import trainer as loop
from tenfold.train.config import config_from_fields
from tenfold.train.hooks.metrics import read_metrics
from tenfold.train.optim.hyperparameters import derive
from tenfold.train.optim.optimizer import make_optimizers
from tenfold.train.parallel import parallelize as layout

DIMENSIONS = ("replicate", "shard", "context", "tensor")
STEPS, VOCABULARY = 10, 400
DENSE = {"name": "tiny", "dim": 32, "n_layers": 2, "n_heads": 8, "n_kv_heads": 8, "ffn_dim": 64, "vocab_size": VOCABULARY}
ROUTED = {
    **DENSE, "family": "llama4", "n_experts": 4, "expert_ffn_dim": 32, "attention_chunk": 32, "nope_every": 2, "qk_norm": True,
}  # fmt: skip
RUN = {
    "seq_len": 64, "batch_size": 8, "tokens": STEPS * 8 * 64, "evaluate_tokens": 2048, "log_every": 1, "z_loss": 1e-4,
    "dtype": "float32", "device": "cpu", "compile": "off",
}  # fmt: skip
MODELS = {
    "dense": {**RUN, "model": DENSE},
    "dense, rows that do not divide": {**RUN, "model": DENSE, "batch_size": 11, "tokens": STEPS * 11 * 64, "micro_batch": 1},
    "experts": {**RUN, "model": ROUTED},
    "dense, 8 layers": {**RUN, "model": {**DENSE, "n_layers": 8}},
    "tied, 8 layers": {**RUN, "model": {**DENSE, "n_layers": 8, "tied": True}},
    "experts, 8 layers": {**RUN, "model": {**ROUTED, "n_layers": 8, "moe_every": 2}},
}
# (replicate, shard, context, tensor)
LAYOUTS = {
    "dense": [
        (1, 4, 1, 1), (4, 1, 1, 1), (1, 1, 4, 1), (1, 1, 1, 4), (1, 8, 1, 1), (1, 1, 8, 1), (1, 1, 1, 8), (2, 2, 1, 1),
        (2, 4, 1, 1), (4, 2, 1, 1), (1, 2, 2, 1), (1, 2, 1, 2), (1, 1, 2, 2), (2, 1, 2, 1), (2, 1, 1, 2), (1, 4, 1, 2),
        (1, 2, 4, 1), (1, 1, 2, 4), (2, 2, 2, 1), (2, 2, 1, 2), (2, 1, 2, 2), (1, 2, 2, 2), (2, 2, 2, 2),
    ],
    "dense, rows that do not divide": [(1, 4, 1, 1), (2, 2, 1, 2), (1, 4, 2, 1), (2, 2, 2, 1)],
    "experts": [(1, 4, 1, 1), (2, 2, 1, 1), (1, 1, 4, 1), (1, 1, 1, 4), (1, 2, 2, 2), (2, 2, 2, 1)],
}  # fmt: skip
FURTHER = {
    "experts": [
        {"shard": 4, "expert": 2}, {"shard": 8, "expert": 4}, {"replicate": 2, "shard": 4, "expert": 4},
        {"shard": 2, "context": 4, "expert": 4}, {"replicate": 2, "shard": 2, "context": 2, "expert": 2},
        {"shard": 2, "tensor": 4, "expert": 4}, {"replicate": 2, "context": 2, "tensor": 2, "expert": 4},
    ],
    "dense, 8 layers": [
        {"pipeline": 4}, {"pipeline": 8}, {"pipeline": 2, "shard": 4}, {"pipeline": 2, "replicate": 2, "shard": 2},
        {"pipeline": 2, "shard": 2, "tensor": 2}, {"pipeline": 2, "context": 2, "tensor": 2},
        {"pipeline": 4, "shard": 2, "schedule": "interleaved"},
        {"pipeline": 2, "shard": 2, "tensor": 2, "schedule": "interleaved"},
        {"pipeline": 2, "shard": 2, "context": 2, "schedule": "zero-bubble"},
        {"pipeline": 4, "tensor": 2, "schedule": "zero-bubble"},
    ],
    "tied, 8 layers": [
        {"pipeline": 8}, {"pipeline": 2, "shard": 2, "tensor": 2}, {"pipeline": 4, "shard": 2, "schedule": "interleaved"},
        {"pipeline": 2, "replicate": 2, "context": 2, "schedule": "zero-bubble"},
    ],
    "experts, 8 layers": [
        {"pipeline": 4}, {"pipeline": 2, "shard": 4, "expert": 4}, {"pipeline": 2, "shard": 2, "context": 2, "expert": 2},
        {"pipeline": 2, "shard": 2, "tensor": 2, "expert": 4}, {"pipeline": 2, "replicate": 2, "shard": 2, "expert": 2},
        {"pipeline": 4, "shard": 2, "expert": 2, "schedule": "interleaved"},
        {"pipeline": 2, "context": 2, "tensor": 2, "expert": 2, "schedule": "zero-bubble"},
    ],
}  # fmt: skip
RESHARDED = [(1, 8, 1, 1), (2, 4, 1, 1), (1, 1, 1, 8), (1, 2, 2, 2), (2, 2, 1, 2)]
SPEC = ModelSpec("tiny", dim=32, n_layers=2, n_heads=8, n_kv_heads=8, ffn_dim=64, vocab_size=96)


def in_double_precision() -> None:
    """Whatever names single precision means double, so that rounding is far below what is compared."""
    torch.float32 = torch.float64
    torch.Tensor.float = torch.Tensor.double
    torch._grouped_mm = lambda x, w, offs: torch.cat(
        [part @ one for part, one in zip(x.tensor_split(offs[:-1].tolist()), w, strict=True)]  # PyTorch's takes single at most
    )
    torch.set_default_dtype(torch.float64)


def _enter(rank: int, world: int, port: int, work, arguments) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    layout.start_processes()
    work(*arguments)
    if dist.is_initialized():
        dist.destroy_process_group()


def together(world: int, work, *arguments) -> None:
    """`work(*arguments)` in `world` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tenfold.train.trainer", "torch._dynamo"])
    started = [context.Process(target=_enter, args=(rank, world, port, work, arguments)) for rank in range(world)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    if any(process.exitcode for process in started):
        raise SystemExit(f"{work.__name__} failed on {world} processes.")


def train(corpus: Path, folder: Path, jobs: list[tuple[str, dict]]) -> None:
    in_double_precision()
    for name, fields in jobs:
        loop.train(config_from_fields(fields, name), open_corpus(corpus), folder / name, quiet=True)


def made(seed: int, sizes: tuple[int, ...]):
    torch.manual_seed(seed)
    model = make_model(SPEC)
    place = layout.parallelize(model, layout.LayoutConfig(**as_table(sizes)), torch.device("cpu"), 16, 8)
    return model, make_optimizers(model, SPEC, derive(SPEC, 10**5, 64), "muon"), place


def step(model, optimizers, place, seed: int) -> None:
    tokens = torch.randint(0, SPEC.vocab_size, (8, 16), generator=torch.Generator().manual_seed(seed))
    first, end, _ = place.rows(8)
    model.loss(tokens[first:end], place.positions(tokens.roll(-1, 1)[first:end]))[0].backward()
    layout.clip_gradient(model, 1.0, place)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def whole(model, optimizers) -> dict:
    weights, state = get_state_dict(model, optimizers, options=StateDictOptions(flatten_optimizer_state_dict=True))
    return {
        k: (v.full_tensor() if hasattr(v, "full_tensor") else v).clone() if isinstance(v, torch.Tensor) else v
        for k, v in {**weights, **state}.items()
    }


def reshard(folder: Path) -> None:
    """Save in every layout and load in every other; a file `A-B` says that nothing changed."""
    saved = {}
    for sizes in RESHARDED:
        model, optimizers, place = made(1, sizes)
        step(model, optimizers, place, 1)
        with checkpoint.Saver(folder / str(sizes), keep=1) as saver:
            saver.save(1, model, optimizers, {"step": 1})
        saved[sizes] = whole(model, optimizers)
    for target in RESHARDED:
        for source, want in saved.items():
            model, optimizers, place = made(2, target)
            step(model, optimizers, place, 2)  # so that there is something to change
            checkpoint.restore_latest(folder / str(source), model, optimizers)
            have = whole(model, optimizers)
            same = have.keys() == want.keys() and all(
                torch.equal(want[k], have[k]) if isinstance(want[k], torch.Tensor) else want[k] == have[k] for k in want
            )
            if dist.get_rank() == 0 and same and source != target:
                (folder / f"{source}-{target}").touch()
            dist.barrier()


def name_of(table: dict) -> str:
    ways = " x ".join(f"{name} {size}" for name, size in table.items() if name != "schedule" and size > 1)
    return f"{ways}, {table['schedule']}" if "schedule" in table else ways


def as_table(sizes: tuple[int, ...]) -> dict:
    return dict(zip(DIMENSIONS, sizes, strict=True))


def compare(one: Path, many: Path) -> dict:
    a, b = ([e for e in read_metrics(d / "run.jsonl") if e["event"] == "step"] for d in (one, many))
    assert len(a) == len(b) == STEPS
    x, y = (load_file(d / "model" / "model.safetensors") for d in (one, many))
    return {
        "loss_difference": max(abs(p["loss"] / q["loss"] - 1) for p, q in zip(a, b, strict=True)),
        "gradient_norm_difference": max(abs(p["grad_norm"] / q["grad_norm"] - 1) for p, q in zip(a, b, strict=True)),
        "weight_difference": max(float((x[k] - y[k]).norm() / x[k].norm()) for k in x if x[k].norm()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=10**9, help="Layouts of each model at most.")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = Path(tempfile.mkdtemp())
    text = folder / "text"
    text.mkdir()
    for source in sorted(Path(os.__file__).parent.glob("[a-h]*.py")):
        shutil.copyfile(source, text / source.name)
    corpus = build(text, folder / "corpus", vocab_size=VOCABULARY, quiet=True).directory
    jobs: dict[int, list] = {}
    for model, fields in MODELS.items():
        jobs.setdefault(1, []).append((model, fields))
        for table in [*map(as_table, LAYOUTS.get(model, [])), *FURTHER.get(model, [])][: given.most]:
            world = math.prod(table.get(name, 1) for name in ("pipeline", *DIMENSIONS))
            jobs.setdefault(world, []).append((f"{model}: {name_of(table)}", {**fields, "layout": table}))
    rows = []
    for world, named in jobs.items():
        for i in range(0, len(named), 6):  # groups of processes that are over still have threads
            together(world, train, corpus, folder, named[i : i + 6])
        for name, _ in named if world > 1 else ():
            row = {"case": name, "processes": world, "dimensions": name.split(": ")[1].count(" x ") + 1}
            row |= compare(folder / name.split(": ")[0], folder / name)
            rows.append(row)
            print(f"{name}: losses within {row['loss_difference']:.1e}, weights {row['weight_difference']:.1e}", flush=True)
    pairs = [(a, b) for a in RESHARDED for b in RESHARDED if a != b]
    (folder / "reshard").mkdir()
    together(8, reshard, folder / "reshard")
    for a, b in pairs:
        same = (folder / "reshard" / f"{a}-{b}").exists()
        rows.append({"case": f"checkpoint: {name_of(as_table(a))} -> {name_of(as_table(b))}", "same_to_the_bit": same})
    print(f"{sum(row.get('same_to_the_bit', False) for row in rows)} of {len(pairs)} pairs are the same to the bit")
    print(write_results("layouts", rows))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
