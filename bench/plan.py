"""The plan against published measurements, and its speed."""

import argparse
import subprocess
import sys
import time
from dataclasses import asdict

from results_file import write_results

from tenfold.plan.validation.validate import validate
from tenfold.plan.workload.machine import machine
from tenfold.plan.workload.search import search
from tenfold.spec.model import published_model
from tenfold.spec.shapes import Experts, shape_for_params


def search_rows() -> list[dict]:
    """CPU seconds of two full searches, caches empty at the first."""
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


def import_row() -> dict:
    """Seconds until the plan's rooms are imported, in a fresh interpreter."""
    code = "import time; t = time.process_time(); import tenfold.plan.plan; print(time.process_time() - t)"
    cpu = min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(3)
    )
    return {"what": "import", "cpu_s": cpu}


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    errors, remarks = validate()
    rows = [{"what": "error", **asdict(error)} for error in errors]
    rows += [{"what": "remark", "text": remark} for remark in remarks]
    print(write_results("plan", [*rows, *search_rows(), import_row()], "python bench/plan.py"))


if __name__ == "__main__":
    main()
