"""Speed of the trainer on one GPU, compared with the GPU's own limit and with `transformers`.

    PYTHONPATH=src python -m bench.gpu.train --seconds-in-all 240
    PYTHONPATH=src python -m bench.gpu.train --device cpu --tiny   # tests the script without a GPU; its figures mean nothing

The limit is the machine's own 8192-cubed bf16 product, measured before and after. The grouped product of experts at Scout's shape
is measured too, with balanced and with skewed shares. Every side runs in its own process with its own time limit, and the sides
alternate in rounds; a side that fails becomes a row with its reason. Both sides run the trainer's own step: forward, backward,
clipping and a fused AdamW step on fresh copies of the batch. FLOPs are those of `tenfold.spec`, with causal attention halved, and
with documents only the attention within each. Figures are medians over the steps of all rounds, with the slowest and fastest.

`vs_transformers` compares with the faster of its eager and compiled form, both with bf16 weights, its fastest format. Tenfold keeps
float32 weights and moments under autocast, as the trainer does; the rows `bf16 weights` are like for like. Rows of cases that are
not measured again stay in the file if they are from the same kind of GPU, so cases can be measured one by one. The first round
compiles into an empty cache; `first_step_cached_s` is from a later round, counted from the start of the process.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from bench.harness import ROOT, Headline, options, rows_of, write_results

COLUMNS = ("case", "system", "tokens_per_s", "tflops", "share_of_limit", "vs_transformers", "peak_gib", "joules_per_token")

Job = dict[str, Any]


def cases(tiny: bool) -> dict[str, list[tuple[str, Job]]]:
    """For each case its sides, by name; the most important cases first."""
    ours: Job = {"system": "tenfold", "weights": "float32"}
    bf16: Job = {"system": "tenfold", "weights": "bfloat16"}
    theirs: Job = {"system": "transformers", "weights": "bfloat16"}
    one_b, eight_b, scout = {"case": "1b"}, {"case": "8b"}, {"case": "scout", "batch": 2}
    compiled = [("tenfold", ours), ("tenfold, bf16 weights", bf16), ("transformers compiled", theirs)]
    found = {
        "1B, 4 x 8192": [(name, one_b | job) for name, job in [*compiled, ("transformers", theirs | {"compiled": False})]],
        "8B's width, 8 layers, 4 x 8192": [(name, eight_b | job) for name, job in compiled],
        "1B, documents of 1000 in 8192": [("tenfold", one_b | ours | {"documents": True})],
        "8B's width, 8 layers, fp8": [(f"tenfold, fp8 by {by}", eight_b | bf16 | {"fp8": by}) for by in ("tensorwise", "rowwise")],
        "1B, largest batch of 8192": [
            (f"tenfold, activation checkpointing {what}", one_b | ours | {"what": "largest", "activation_checkpointing": what})
            for what in ("none", "selective", "full")
        ],
        "Scout's width, 2 layers, 2 x 8192": [("tenfold, bf16 weights", scout | bf16)],
        "Scout's width, 2 layers, fp8": [("tenfold, fp8 by rowwise", scout | bf16 | {"fp8": "rowwise"})],
    }
    return toys(found) if tiny else found


def toys(found: dict[str, list[tuple[str, Job]]]) -> dict[str, list[tuple[str, Job]]]:
    """A few sides in toy sizes with the backend "eager", which needs no compiler and no GPU."""
    small: Job = {
        "case": "tiny", "batch": 2, "seq_len": 256, "seconds": 0.2, "most_rows": 3, "weights": "float32", "backend": "eager",
    }  # fmt: skip
    kept = {
        "1B, 4 x 8192": ("tenfold", "transformers compiled"),
        "1B, documents of 1000 in 8192": ("tenfold",),
        "8B's width, 8 layers, fp8": ("tenfold, fp8 by tensorwise",),
        "1B, largest batch of 8192": ("tenfold, activation checkpointing selective",),
    }
    return {case: [(name, job | small) for name, job in found[case] if name in names] for case, names in kept.items()}


def run_side(job: Job, seconds: float, cache: str) -> dict[str, Any]:
    """Run one side in a subprocess; its results, or `reason`: why there are none."""
    command = [sys.executable, "-m", "bench.train.sides", json.dumps(job | {"began": time.time()})]
    environment = os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": cache,
        "TRITON_CACHE_DIR": str(Path(cache) / "triton"),
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
    # Its own process group, so that the compiler's processes can be killed with it.
    side = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT, start_new_session=True
    )
    try:
        out, err = side.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"reason": f"took more than {seconds:.0f} s"}
    finally:
        if side.poll() is None:
            os.killpg(side.pid, signal.SIGKILL)
            side.wait()
    said = [line for line in out.splitlines() if line.startswith("{")]
    if side.returncode == 0 and said:
        return json.loads(said[-1])
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    return {"reason": (lines[-1] if lines else f"ended with {side.returncode} and said nothing")[:300]}


def row(case: str, system: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """One row from a side's results of all rounds."""
    good = [f for f in found if "reason" not in f]
    if not good:
        return {"case": case, "system": system, "reason": found[-1]["reason"] if found else "not reached in the time given"}
    taken = [s for f in good for s in f["step_s"]]
    step_s, last = statistics.median(taken), good[-1]
    return {
        "case": case,
        "system": system,
        "tokens_per_s": last["tokens"] / step_s,
        "tflops": last["flops"] / step_s / 1e12,
        "peak_gib": max(f["peak_gib"] for f in good),
        "joules_per_token": statistics.median(f["joules_per_token"] for f in good),
        "energy_source": last["energy_source"],
        "step_s": step_s,
        "step_s_least": min(taken),
        "step_s_most": max(taken),
        "step_s_of_rounds": [statistics.median(f["step_s"]) for f in good],
        "steps": len(taken),
        "weights": last["job"]["weights"],
        "batch": last["batch"],
        "micro_batch": last["micro_batch"],
        "seq_len": last["job"]["seq_len"],
        "parameters": last["parameters"],
        "first_step_s": good[0]["first_step_s"],
        "first_step_cached_s": min((f["first_step_s"] for f in found[1:] if "reason" not in f), default=None),
        "first_loss": last["first_loss"],
        "last_loss": last["last_loss"],
        "busiest_expert_over_mean": last["busiest_expert_over_mean"],
    }


def earlier(name: str, gpu: str, again: set[tuple[str, str]]) -> list[dict[str, Any]]:
    """Rows already in the file that were measured on the same kind of GPU and are not measured `again`."""
    return [r for r in rows_of(name) if r.get("gpu") == gpu and (r["case"], r["system"]) not in again]


# For a case: the case and system that `vs_plain` compares with.
PLAIN = {
    "1B, documents of 1000 in 8192": ("1B, 4 x 8192", "tenfold"),
    "8B's width, 8 layers, fp8": ("8B's width, 8 layers, 4 x 8192", "tenfold, bf16 weights"),
    "Scout's width, 2 layers, fp8": ("Scout's width, 2 layers, 2 x 8192", "tenfold, bf16 weights"),
}


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with their ratios to the limit, to `transformers` and to one another."""
    measured = [r for r in rows if "tokens_per_s" in r]
    for r in measured:
        r["share_of_limit"] = r["tflops"] / r["limit_tflops"]
        theirs = [o for o in measured if o["case"] == r["case"] and o["system"].startswith("transformers")]
        if theirs:
            fastest = max(theirs, key=lambda o: o["tokens_per_s"])
            r["vs_transformers"] = r["tokens_per_s"] / fastest["tokens_per_s"]
            compiled = next((o for o in theirs if "compiled" in o["system"]), fastest)
            r["memory_vs_transformers"] = r["peak_gib"] / compiled["peak_gib"]
            r["transformers_micro_batch"] = compiled["micro_batch"]
        other = next((o for o in measured if PLAIN.get(r["case"]) == (o["case"], o["system"])), None)
        if other:
            r["vs_plain"] = r["tokens_per_s"] / other["tokens_per_s"]
    return rows


def headline(rows: list[dict[str, Any]]) -> Headline:
    for r in rows:
        if r["system"] == "tenfold" and "vs_transformers" in r:
            what = f"{r['gpu']}, training, {r['case']}: of the matrix rate; beside `transformers`, tokens/s and memory"
            beside = f"{r['vs_transformers']:.2f}x, {r['memory_vs_transformers']:.2f}x"
            yield what, f"{r['share_of_limit']:.0%}; {beside}"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table; a row without figures has its reason."""
    formats = {"tokens_per_s": ".0f", "tflops": ".1f", "share_of_limit": ".1%", "vs_transformers": ".2f"}
    lines = [" | ".join(("", *COLUMNS, "")).strip(), "|---" * len(COLUMNS) + "|"]
    for r in rows:
        cells = [r["case"], r["system"]]
        if "reason" in r:
            cells += [r["reason"]]
        else:
            cells += [format(r[c], formats.get(c, ".3g")) if r.get(c) is not None else "" for c in COLUMNS[2:]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


class Rounds:
    """The sides, which alternate in rounds with a time limit each, and their results so far."""

    def __init__(self, given: Namespace):
        self.given, self.end = given, time.monotonic() + given.seconds_in_all
        self.cache = tempfile.mkdtemp(prefix="compiled-")
        self.base: Job = {"device": given.device, "seconds": given.seconds, "size": 256 if given.tiny else 8192}
        known = cases(given.tiny)
        chosen = [case for case in known if not given.cases or any(word in case for word in given.cases)]
        self.jobs = {(case, system): job for case in chosen for system, job in known[case]}
        self.found: dict[tuple[str, str], list[dict[str, Any]]] = {key: [] for key in self.jobs}
        self.limits: list[dict[str, Any]] = []

    def left(self) -> float:
        return self.end - time.monotonic()

    def run(self, job: Job) -> dict[str, Any]:
        return run_side(self.base | job, min(self.given.seconds_a_side, max(1.0, self.left())), self.cache)

    def measure_limit(self) -> None:
        self.limits.append(self.run({"what": "limit"}))

    def take_turns(self, turn: int) -> None:
        """Run one round. Skips sides that failed before, and stops starting sides when little time is left."""
        for (case, system), job in self.jobs.items():
            before = self.found[case, system]
            failed = turn and all("reason" in f for f in before)
            if self.left() < 10 or failed or (turn and job.get("what") == "largest"):
                continue
            result = self.run(job | ({"micro_batch": before[-1]["micro_batch"]} if turn else {}))
            before.append(result)
            said = result.get("reason") or (
                f"{result['tokens'] / statistics.median(result['step_s']):.0f} tokens/s, {result['batch']} rows a step, "
                f"{result['peak_gib']:.1f} GiB"
            )
            print(f"round {turn + 1}: {case}, {system}: {said}", flush=True)
            self.write()

    def rows(self) -> list[dict[str, Any]]:
        good = [one for one in self.limits if "reason" not in one]
        if not good:
            return [{"case": "limit", "system": "matrix product", "reason": self.limits[-1]["reason"]}]
        limit, of = statistics.median(one["limit"]["median"] for one in good), good[-1]
        case = f"limit, {self.base['size']}-cubed product"
        first = {"case": case, "system": "matrix product", "tflops": limit / 1e12, "of": of}
        new = [row(*key, f) | {"limit_tflops": limit / 1e12, "gpu": of["gpu"]} for key, f in self.found.items()]
        return [first, *compared([*earlier(self.given.name, of["gpu"], set(self.found)), *new])]

    def write(self) -> Path:
        rows = self.rows()
        return write_results(self.given.name, rows, headline(rows))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: tests the script, measures nothing")
    parser.add_argument("--cases", nargs="*", default=[], help="only cases whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0, help="seconds of steps, for each side and round")
    parser.add_argument("--seconds-a-side", type=float, default=110.0, help="seconds after which a side is stopped")
    parser.add_argument("--seconds-in-all", type=float, default=3600.0, help="seconds after which no further side is started")
    parser.add_argument("--name", default="gpu_train", help="name of the file in bench/results")
    given = parser.parse_args()
    rounds = Rounds(given)
    rounds.measure_limit()
    for turn in range(1 if given.tiny else given.rounds):
        rounds.take_turns(turn)
    if rounds.left() > 15 and not given.tiny:
        rounds.measure_limit()
    path = rounds.write()
    print(table(rounds.rows()))
    print(f"\n{path}")


if __name__ == "__main__":
    main()
