"""The dry runs of Llama 3.1 405B on 16,384 processes, of a 2T expert model on 131,072, and of smaller ones, beside the planner.

    python bench/dry_run.py

Each case is a process of its own (`tenfold train --dry-run`), so that its seconds and its memory are what a user sees. Rows of
cases that were not asked for stay.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tomli_w
from results_file import RESULTS, write_results

LARGE = {
    "model": "llama-3.1-405b", "tokens": 15_600_000_000_000, "seq_len": 8192, "batch_size": 2048, "micro_batch": 1,
    "optimizer": "adamw",
}  # fmt: skip
MEDIUM = {**LARGE, "model": "llama-3.1-70b", "batch_size": 1024}
EXPERTS = {
    **LARGE, "batch_size": 8192,
    "model": {
        "name": "2t-16e", "family": "llama4", "dim": 12288, "n_layers": 96, "n_heads": 96, "n_kv_heads": 8, "ffn_dim": 65536,
        "n_experts": 16, "expert_ffn_dim": 32768, "attention_chunk": 8192, "nope_every": 4, "qk_norm": True,
    },
    "vocab_size": 202_048,
}  # fmt: skip
SMALL = {**LARGE, "model": "llama-3.1-8b", "batch_size": 512}
ROUTED = {"replicate": 64, "shard": 128, "context": 16, "expert": 16}
ROUTED_LINE = {"pipeline": 8, "replicate": 8, "shard": 64, "context": 4, "tensor": 8, "expert": 16}
CASES = {
    "8b-64": (64, {**SMALL, "recompute": "block", "layout": {"shard": 64}}),
    "8b-64-none": (64, {**SMALL, "layout": {"shard": 8, "context": 8}}),
    "70b-1024": (1024, {**MEDIUM, "recompute": "block", "layout": {"replicate": 2, "shard": 64, "tensor": 8}}),
    "405b-16384-line": (16_384, {**LARGE, "recompute": "block", "layout": {"pipeline": 16, "shard": 128, "tensor": 8}}),
    "405b-16384": (16_384, {**LARGE, "recompute": "block", "layout": {"replicate": 16, "shard": 128, "tensor": 8}}),
    "2t-131072-line": (131_072, {**EXPERTS, "recompute": "block", "layout": ROUTED_LINE}),
    "2t-131072": (131_072, {**EXPERTS, "recompute": "block", "layout": ROUTED}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    given = parser.parse_args()
    kept = RESULTS / "dry_run.json"
    rows = [r for r in json.loads(kept.read_text())["rows"] if r["case"] not in given.cases] if kept.exists() else []
    for name in given.cases:
        world, fields = CASES[name]
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run.toml"
            run.write_text(tomli_w.dumps(fields))
            began = time.perf_counter()
            command = [sys.executable, "-m", "tenfold", "train", str(run), "--dry-run", "--world", str(world), "--json"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
        if done.returncode:
            raise SystemExit(done.stderr)
        found = json.loads(done.stdout)
        found["case"], found["wall_s"] = name, round(time.perf_counter() - began, 1)
        # The most that any of the processes so far has held: of one case alone where it is run alone.
        found["process_gib"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 2)
        rows.append(found)
        middle = found["ranks"][len(found["ranks"]) // 2 if found["layout"]["pipeline"] > 1 else 0]
        memory, sent = max(rank["memory_gib"] for rank in found["ranks"]), sum(middle["sent_gib"].values())
        print(
            f"{name}: {memory:.1f} GiB (planner {found['plan_memory_gib']:.1f}), sends {sent:.0f} GiB a step "
            f"(planner {sum(found['plan_sent_gib'].values()):.0f}), {found['wall_s']} s, {found['process_gib']} GiB here",
            flush=True,
        )
    print(write_results("dry_run", sorted(rows, key=lambda r: list(CASES).index(r["case"]))))


if __name__ == "__main__":
    main()
