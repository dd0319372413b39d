"""Training speed and peak memory compared with a `transformers` Llama of the same shape and batch.

    python -m bench.train.speed --threads 2

Each case runs the two sides in their own processes, which alternate with a few steps each; the ratio is that of the medians. Both
sides use fused AdamW and PyTorch's scaled dot product attention, each in the precision that is faster for it on this machine. In
`compiled` cases both are compiled.
"""

from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median

import torch

from bench.gpu.limits import clocked
from bench.harness import Headline, Row, alternate, options, rows_of, write_results
from bench.train.sides import Job, Side, shape
from tenfold.train.memory import peak_memory_bytes, reset_peak_memory

TURNS, STEPS = 5, 4
CPU = torch.device("cpu")
SYSTEMS = ("tenfold", "transformers")
# The ladder's sizes, and SmolLM2-135M's shape.
CASES = {f"width {w}": Job(device="cpu", case=f"dense {w}", batch=8, seq_len=256) for w in (32, 64, 128, 256)}
CASES["SmolLM2-135M"] = Job(device="cpu", case="smollm2-135m", batch=2, seq_len=512)


def work(link: Connection, job: Job, threads: int) -> None:
    """The process of one side: for each True received, take some steps and send their seconds; at the end send the peak memory."""
    torch.set_num_threads(threads)
    side = Side(job)
    side.step(), side.step()
    reset_peak_memory(CPU)
    while link.recv():
        link.send(list(clocked(side.step, STEPS, CPU, warm=0)))
    link.send(peak_memory_bytes(CPU))


class Process:
    """A side in its own process; a call is one turn and returns the seconds of its steps."""

    def __init__(self, job: Job, threads: int):
        context = get_context("spawn")
        self.link, there = context.Pipe()
        self.process = context.Process(target=work, args=(there, job, threads), daemon=True)
        self.process.start()

    def __call__(self) -> list[float]:
        self.link.send(True)
        return self.link.recv()

    def end(self) -> int:
        """Stop the process; its peak memory in bytes."""
        self.link.send(False)
        peak = self.link.recv()
        self.process.join(10)
        return peak


def measure(case: str, compiled: bool, dtypes: dict[str, str], threads: int) -> list[Row]:
    jobs = {s: replace(CASES[case], system=s, compiled=compiled, autocast=dtypes[s]) for s in SYSTEMS}
    sides = {system: Process(job, threads) for system, job in jobs.items()}
    seconds = {system: [s for turn in turns for s in turn] for system, turns in alternate(sides, TURNS).items()}
    rows: list[Row] = [
        {
            "case": case,
            "system": system,
            "compiled": compiled,
            "dtype": dtypes[system],
            "threads": threads,
            "parameters": shape(job.case).parameters().total,
            "tokens_per_step": job.batch * job.seq_len,
            "tokens_per_s": job.batch * job.seq_len / median(seconds[system]),
            "step_s_min": min(seconds[system]),
            "step_s_max": max(seconds[system]),
            "peak_mib": sides[system].end() / 2**20,
        }
        for system, job in jobs.items()
    ]
    ours, theirs = rows
    ours["vs_transformers"] = ours["tokens_per_s"] / theirs["tokens_per_s"]
    ours["memory_vs_transformers"] = ours["peak_mib"] / theirs["peak_mib"]
    return rows


def in_the_better_precision(case: str, compiled: bool, dtypes: list[str], threads: int) -> list[Row]:
    """Each side in its faster precision; measured once more, together, if the two differ."""
    found = [measure(case, compiled, dict.fromkeys(SYSTEMS, dtype), threads) for dtype in dtypes]
    pairs = dict(zip(SYSTEMS, zip(*found, strict=True), strict=True))
    best = {system: max(rows, key=lambda r: r["tokens_per_s"])["dtype"] for system, rows in pairs.items()}
    chosen = next((pair for pair in found if all(r["dtype"] == best[r["system"]] for r in pair)), None)
    return chosen or measure(case, compiled, best, threads)


def headline(rows: list[Row]) -> Headline:
    ours = [r for r in rows if r["system"] == "tenfold"]
    names = ", ".join(f"{r['case']}{', compiled' if r['compiled'] else ''}" for r in ours)
    yield f"training beside `transformers`, tokens/s: {names}", ", ".join(f"{r['vs_transformers']:.2f}x" for r in ours)
    yield "the same: peak memory", ", ".join(f"{r['memory_vs_transformers']:.2f}x" for r in ours)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--compiled", action="store_true", help="also with torch.compile on both sides")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="only these cases; rows of other cases stay in the file")
    given = parser.parse_args()
    rows = [row for row in rows_of("train") if given.cases and row["case"] not in given.cases]
    for case in given.cases or CASES:
        for compiled in (False, True) if given.compiled else (False,):
            ours, theirs = in_the_better_precision(case, compiled, given.dtypes, given.threads)
            rows += [ours, theirs]
            print(
                f"{case}{' compiled' if compiled else ''}: {ours['tokens_per_s']:.0f} tokens/s, "
                f"{ours['vs_transformers']:.2f}x transformers, memory {ours['memory_vs_transformers']:.2f}x",
                flush=True,
            )
            write_results("train", rows, headline(rows))


if __name__ == "__main__":
    main()
