"""Errors of the plan on published measurements, and its speed.

python -m bench.plan.validate
"""

import re
import subprocess
import sys
import time
from dataclasses import asdict

from bench.harness import Headline, Row, options, write_results
from tenfold.plan.validation.validate import validate
from tenfold.plan.workload.machine import machine
from tenfold.plan.workload.search import search
from tenfold.spec.model import published_model
from tenfold.spec.shapes import Experts, shape_for_params


def search_rows() -> list[Row]:
    """Wall-clock and CPU seconds of two full searches; the first starts with empty caches."""
    rows = []
    giant = shape_for_params(110e9, 128_256, "llama4", Experts(64, per_token=2))
    for spec, gpus, batch in ((published_model("llama-3.1-405b"), 16_384, 2048), (giant, 131_072, 8192)):
        wall, cpu = time.perf_counter(), time.process_time()
        found = search(spec, gpus, machine("h100"), seq_len=8192, global_batch=batch)
        rows.append(
            {
                "what": "search", "model": spec.name, "parameters": spec.parameters().total, "gpus": gpus, "layouts": found.tried,
                "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "best": found.best.layout.words(),
            }
        )  # fmt: skip
    return rows


def import_row() -> Row:
    """CPU seconds to import `tenfold.plan.plan` in a fresh interpreter, the best of three."""
    code = "import time; t = time.process_time(); import tenfold.plan.plan; print(time.process_time() - t)"
    cpu = min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(3)
    )
    return {"what": "import", "cpu_s": cpu}


def headline(rows: list[Row]) -> Headline:
    errors = {(r["kind"], r["source"]): r for r in rows if r["what"] == "error"}
    steps = [errors["step time, bf16", s] for s in ("all", "vTrain, one node", "vTrain, 64 to 512 GPUs")]
    steps += [errors["step time, fp8", s] for s in ("all dense", "all with experts")]
    sources = "; ".join(f"{r['kind'][-4:].strip()} {r['source']} ({r['rows']} rows)" for r in steps)
    yield f"plan, step time, mean error: {sources}", "; ".join(f"{r['mean_abs_pct']:.1f} %" for r in steps)
    of_sources = [r for (kind, s), r in errors.items() if kind == "step time, bf16" and s != "all"]
    worst = max(of_sources, key=lambda r: r["mean_abs_pct"])
    yield f"plan, step time, bf16, worst source: {worst['source']} ({worst['rows']} rows)", f"{worst['mean_abs_pct']:.1f} %"
    memory = errors["memory", "all that report it"]
    yield f"plan, memory ({memory['rows']} rows): mean error", f"{memory['mean_abs_pct']:.1f} %"
    totals = [r for (kind, _), r in errors.items() if kind.startswith(("GPU-hours, all", "t CO2e"))]
    kinds = "; ".join(f"{r['kind']} ({r['rows']} {r['source']})" for r in totals)
    yield f"plan, median error: {kinds}", "; ".join(f"{r['median_abs_pct']:.1f} %" for r in totals)
    remarks = [r["text"] for r in rows if r["what"] == "remark" and r["text"].startswith("Ranking")]
    found = [hit for text in remarks if (hit := re.search(r"best in (.*) \((.*)\)", text))]
    yield "plan: its favourite is within 3 % of the measured best", "; ".join(f"{hit[1]} ({hit[2]})" for hit in found)
    yield "plan: validate of all", f"{next(r['cpu_s'] for r in rows if r['what'] == 'validate'):.1f} s of a processor"
    searches = [r for r in rows if r["what"] == "search"]
    models = "; ".join(f"{r['model']} on {r['gpus']:,} GPUs" for r in searches)
    yield f"plan: full search, {models}", "; ".join(f"{r['wall_s']:.1f} s" for r in searches)


def main() -> None:
    options(__doc__).parse_args()
    began = time.process_time()
    found = validate()
    rows: list[Row] = [{"what": "error", **asdict(error)} for error in found.errors]
    rows += [{"what": "remark", "text": remark} for remark in found.remarks]
    rows.append({"what": "validate", "cpu_s": time.process_time() - began})
    rows += [*search_rows(), import_row()]
    print(write_results("plan", rows, headline(rows)))


if __name__ == "__main__":
    main()
