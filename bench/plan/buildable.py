"""Check every layout that the planner shows with the trainer's own check, and dry-run some of them with the trainer's own code.

    python -m bench.plan.buildable
    python -m bench.plan.buildable --models smollm2-135m --worlds 8 --dry-runs 1

For all published models on 8 to 131,072 processes, the best layout and the next nine are checked. `--dry-runs` of these layouts,
the best of every model and number of processes first, are run on fake processes (`tenfold train --dry-run`).
"""

import json
import subprocess
import tempfile
import time
from itertools import zip_longest
from pathlib import Path

import msgspec
import tomli_w

from bench.harness import TENFOLD, Headline, Row, options, write_results
from tenfold.plan.workload.machine import machine
from tenfold.plan.workload.search import search
from tenfold.spec.errors import TenfoldError
from tenfold.spec.layout import Layout, check_trainer
from tenfold.spec.model import published_model, published_models
from tenfold.train.run_file import ELSEWHERE

WORLDS = (8, 64, 512, 4096, 16_384, 131_072)
SEQ_LEN = 4096


def shown(name: str, world: int) -> tuple[list[Layout], str]:
    """(the layouts that the planner shows for a model on `world` processes, the error if there is none)."""
    try:
        found = search(published_model(name), world, machine("h100"), seq_len=SEQ_LEN, global_batch=max(1024, world))
    except TenfoldError as error:
        return [], str(error)
    return [found.best.layout, *(other.layout for other in found.others)], ""


def dry_run(name: str, layout: Layout) -> str:
    """Dry-run a layout; the trainer's error, or an empty string if it runs."""
    parallel = {key: value for key, value in msgspec.structs.asdict(layout).items() if key not in ELSEWHERE}
    if layout.pp == 1:
        parallel = {key: value for key, value in parallel.items() if key not in ("schedule", "virtual_stages")}
    data = {"seq_len": layout.seq_len, "batch_size": layout.global_batch}
    run = {"model": name, "tokens": 10**12, "optimizer": {"name": "adamw"}, "data": data, "parallel": parallel}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.toml"
        path.write_text(tomli_w.dumps(run))
        command = [*TENFOLD, "train", str(path), "--dry-run", "--world", str(layout.world), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    return "" if done.returncode == 0 and json.loads(done.stdout)["world"] == layout.world else done.stderr[-400:]


def headline(rows: list[Row]) -> Headline:
    checked, ran = [r for r in rows if r["what"] == "check"], [r for r in rows if r["what"] == "dry run"]
    failed = sum(r["fault"] != "" for r in checked)
    yield "layouts shown that the trainer's check refuses", f"{failed} of {len(checked)}"
    yield "dry runs of layouts shown that fail", f"{sum(r['fault'] != '' for r in ran)} of {len(ran)}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--models", nargs="*", default=list(published_models()))
    parser.add_argument("--worlds", nargs="*", type=int, default=list(WORLDS))
    parser.add_argument("--dry-runs", type=int, default=60)
    asked = parser.parse_args()
    rows: list[Row] = []
    per_case: list[list[tuple[str, Layout]]] = []
    for world in asked.worlds:
        for name in asked.models:
            layouts, why = shown(name, world)
            if why:
                rows.append({"what": "none fits", "model": name, "world": world, "why": why})
            for layout in layouts:
                fault = check_trainer(layout, published_model(name))
                rows.append({"what": "check", "model": name, "world": world, "layout": layout.words(), "fault": fault})
            per_case.append([(name, layout) for layout in layouts])
    path = write_results("plan_buildable", rows, headline(rows))
    in_turn = [one for rank in zip_longest(*per_case) for one in rank if one is not None]
    for name, layout in in_turn[: asked.dry_runs]:
        began = time.perf_counter()
        fault = dry_run(name, layout)
        seconds = round(time.perf_counter() - began, 1)
        done = {"model": name, "world": layout.world, "layout": layout.words(), "fault": fault, "seconds": seconds}
        rows.append({"what": "dry run", **done})
        print(f"{name} {layout.world} {layout.words()}: {fault or 'runs'}, {seconds} s", flush=True)
        path = write_results("plan_buildable", rows, headline(rows))  # keeps the finished dry runs if the benchmark is stopped
    print(path)


if __name__ == "__main__":
    main()
