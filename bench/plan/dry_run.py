"""Dry runs of Llama 3.1 405B on 16,384 processes, of a 2T expert model on 131,072, and of smaller ones, compared with the planner.

    python -m bench.plan.dry_run

Each case runs in its own process (`tenfold train --dry-run`), so that its seconds and memory are what a user sees. Rows of cases
that are not measured again stay in the file.
"""

import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import tomli_w

from bench.harness import TENFOLD, Headline, Row, options, rows_of, write_results

LARGE = {
    "model": "llama-3.1-405b", "tokens": 15_600_000_000_000, "data": {"seq_len": 8192, "batch_size": 2048},
    "optimizer": {"name": "adamw"},
}  # fmt: skip
MEDIUM = {**LARGE, "model": "llama-3.1-70b", "data": {"seq_len": 8192, "batch_size": 1024}}
SMALL = {**LARGE, "model": "llama-3.1-8b", "data": {"seq_len": 8192, "batch_size": 512}}
EXPERTS = {
    **LARGE, "data": {"seq_len": 8192, "batch_size": 8192, "vocab_size": 202_048},
    "model": {
        "name": "2t-16e", "family": "llama4", "dim": 12288, "n_layers": 96, "n_heads": 96, "n_kv_heads": 8, "ffn_dim": 65536,
        "n_experts": 16, "expert_ffn_dim": 32768, "attention_chunk": 8192, "nope_every": 4, "qk_norm": True,
    },
}  # fmt: skip
# (processes, run, layout). Blocks are recomputed in the backward pass, except in "8b-64-none".
CASES = {
    "8b-64": (64, SMALL, {"dp_shard": 64}),
    "8b-64-none": (64, SMALL, {"dp_shard": 8, "cp": 8, "activation_checkpointing": "none"}),
    "70b-1024": (1024, MEDIUM, {"dp_replicate": 2, "dp_shard": 64, "tp": 8}),
    "405b-16384-line": (16_384, LARGE, {"pp": 16, "dp_shard": 128, "tp": 8}),
    "405b-16384": (16_384, LARGE, {"dp_replicate": 16, "dp_shard": 128, "tp": 8}),
    "2t-131072-line": (131_072, EXPERTS, {"pp": 8, "dp_replicate": 8, "dp_shard": 64, "cp": 4, "tp": 8, "ep": 16}),
    "2t-131072": (131_072, EXPERTS, {"dp_replicate": 64, "dp_shard": 128, "cp": 16, "ep": 16}),
}


def figures(row: Row) -> str:
    """Text: seconds, GiB held by the fullest process, GiB sent in a step, and the planner's figures of both."""
    middle = row["ranks"][(len(row["ranks"]) - 1) // 2]  # of a pipeline that of its second stage, else the first
    memory, sent = max(rank["memory_gib"] for rank in row["ranks"]), sum(middle["sent_gib"].values())
    planned = f"{row['plan_memory_gib']:.0f} and {sum(row['plan_sent_gib'].values()):.0f}"
    return f"{row['wall_s']:.0f} s; {memory:.0f} GiB held, {sent:.0f} GiB sent a step (planner {planned})"


def headline(rows: list[Row]) -> Headline:
    for row in rows:
        if row["case"] in ("405b-16384", "2t-131072"):
            yield f"dry run, {row['case']}", figures(row)


def measure(name: str) -> Row:
    """One case, in its own process."""
    world, fields, layout = CASES[name]
    parallel = {"micro_batch": 1, "activation_checkpointing": "full", **layout}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run.toml"
        run.write_text(tomli_w.dumps({**fields, "parallel": parallel}))
        began = time.perf_counter()
        command = [*TENFOLD, "train", str(run), "--dry-run", "--world", str(world), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise SystemExit(done.stderr)
    # ru_maxrss is the largest of all subprocesses so far, so `process_gib` is this case's only if no earlier case needed more.
    held = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return json.loads(done.stdout) | {
        "case": name, "wall_s": round(time.perf_counter() - began, 1), "process_gib": round(held, 2),
    }  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    given = parser.parse_args()
    rows = [r for r in rows_of("dry_run") if r["case"] not in given.cases]
    for name in given.cases:
        rows.append(measure(name))
        print(f"{name}: {figures(rows[-1])}, {rows[-1]['process_gib']} GiB here", flush=True)
    rows.sort(key=lambda r: list(CASES).index(r["case"]))
    print(write_results("dry_run", rows, headline(rows)))


if __name__ == "__main__":
    main()
