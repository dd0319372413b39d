"""Serving on one GPU: Llama-3.2-1B's shape with random bf16 weights, compared with the memory's speed and with transformers.

    PYTHONPATH=src python -m bench.gpu.serve                 # all parts, about two minutes
    PYTHONPATH=src python -m bench.gpu.serve --parts copy one

Parts:

- `copy`, `matmul`: the machine's own limits (a device-to-device copy, bytes read and written; an 8192-cubed product).
- `greedy`: compares tokens with the plain model's.
- `one`: decodes a single reply. Its share of the limit is its bytes (weights, and the cache up to each token) times tokens/s,
  over the copy. Needs `copy`.
- `many`: nano-vllm's workload, 256 requests of 100 to 1024 random tokens in and out, all at once, sampled at temperature 0.6. Its
  share is the least possible time over the measured one; a step takes at least the larger of its bytes over the copy and its FLOPs
  over the product. Needs `copy` and `matmul`.
- `transformers`: the same single reply with its static cache and compiled forward.

A part that fails is recorded as failed, and the next one runs.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from random import Random
from typing import Any

import torch

from bench.gpu.limits import copy_rate, matrix_rates
from bench.harness import ROOT, Headline, options, write_results
from tenfold.model.llama import Llama
from tenfold.serve.engine.async_scheduling import AsyncSchedulingEngine
from tenfold.serve.engine.scheduler import SchedulerConfig
from tenfold.serve.request import Request, Sampling
from tenfold.serve.runners.cuda import CudaRunner
from tenfold.serve.runners.runner import BLOCK, cache_block_bytes
from tenfold.spec.model import ModelSpec, published_model

PARTS = ("copy", "matmul", "greedy", "one", "many", "transformers")
CONTEXT, PROMPT = 2048, 128


class Bench:
    """State that the parts share: the model, the limits measured so far, the rows."""

    def __init__(self, spec: ModelSpec, device: str, new: int, requests: int, longest: int):
        self.spec, self.device, self.new, self.requests, self.longest = spec, torch.device(device), new, requests, longest
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.copy_bytes_per_s = self.flops_per_s = float("nan")
        self.rows: list[dict[str, Any]] = []
        torch.manual_seed(0)
        torch.set_default_dtype(self.dtype)
        with self.device:
            self.model = Llama(spec).eval().requires_grad_(False)
        torch.set_default_dtype(torch.float32)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def engine(self, sequences: int, runner: CudaRunner | None = None, token_budget: int = 8192) -> AsyncSchedulingEngine:
        n_blocks = sequences * CONTEXT // BLOCK
        runner = runner or CudaRunner(self.model, n_blocks + token_budget // BLOCK + sequences, sequences, CONTEXT)
        config = SchedulerConfig(max_num_batched_tokens=token_budget, max_num_seqs=sequences)
        return AsyncSchedulingEngine(runner, runner.cache.shape[2], config)

    def tokens(self, seed: int, length: int) -> list[int]:
        return torch.randint(10, self.spec.vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()

    # Parts

    def copy(self) -> dict[str, Any]:
        self.copy_bytes_per_s = copy_rate(self.device, 2**31 if self.device.type == "cuda" else 2**20)
        return {"gb_per_s": self.copy_bytes_per_s / 1e9}

    def matmul(self) -> dict[str, Any]:
        self.flops_per_s = matrix_rates(self.device, self.dtype, 8192)["median"]
        return {"tflops": self.flops_per_s / 1e12}

    def greedy(self) -> dict[str, Any]:
        """Compare with the plain model: in float32 every token must be equal; in bf16 different tokens must be near ties."""
        few, wide = {}, self.model
        small = replace(self.spec, n_layers=2, vocab_size=4096)
        torch.manual_seed(1)
        with self.device:
            plain = Llama(small).eval().requires_grad_(False)
        for name, model in (("float32", plain), (str(self.dtype).removeprefix("torch."), wide)):
            vocab, new = model.spec.vocab_size, 24
            prompts = [[t % vocab for t in self.tokens(i, n)] for i, n in enumerate((7, 40, 130, 301, 33))]
            runner = CudaRunner(model, 5 * 32 + 80, 8, 512)
            for many in (False, True):  # the kernels of a single row, and those of several
                engine = AsyncSchedulingEngine(runner, 5 * 32 + 80, SchedulerConfig(max_num_batched_tokens=256, max_num_seqs=8))
                found: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}
                for i, tokens in enumerate(prompts):
                    engine.add(Request(str(i), tokens, Sampling(temperature=0, max_tokens=new)))
                    while engine.has_work and (not many or i == len(prompts) - 1):
                        for output in engine.step():
                            found[output.request_id] += output.tokens
                same, worst, total = 0, 0.0, 0
                for i, tokens in enumerate(prompts):
                    text = torch.tensor([tokens + found[str(i)]], device=self.device)
                    with torch.inference_mode():
                        logits = model(text)[0, len(tokens) - 1 : -1].float()
                    drawn = torch.tensor(found[str(i)], device=self.device)
                    same += int((logits.argmax(-1) == drawn).sum())
                    behind = logits.amax(-1) - logits.gather(1, drawn[:, None])[:, 0]
                    worst, total = max(worst, float((behind / logits.std(-1)).max())), total + len(drawn)
                few[f"{name}, {'5 at once' if many else '1 at once'}"] = f"{same} of {total}, at most {worst:.3f} std behind"
        return {"equal_to_plain_model": few}

    def one(self) -> dict[str, Any]:
        from tenfold.serve.runners import kernels

        best: dict[str, Any] = {}
        tried: dict[str, Any] = {}
        for early in (False, True):
            kernels.pdl = early
            try:
                rate, tokens = self._decode_one(self.engine(1, token_budget=256))
            except Exception as error:  # a driver without programmatic launches
                tried[f"pdl {early}"] = repr(error)[:200]
                continue
            tried[f"pdl {early}"] = round(rate, 1)
            if not best or (rate > best["tokens_per_s"] and tokens == best["tokens"]):
                best = {"tokens_per_s": rate, "pdl": early, "tokens": tokens}
            elif tokens != best["tokens"]:
                tried[f"pdl {early}"] = f"{rate:.1f}, but other tokens"
        if not best:
            raise RuntimeError(f"decoding failed with and without programmatic launches: {tried}")
        kernels.pdl = best["pdl"]
        best.pop("tokens")
        return {**best, "tried": tried, **self._share(best["tokens_per_s"])}

    def _decode_one(self, engine: AsyncSchedulingEngine) -> tuple[float, list[int]]:
        rates, tokens = [], []
        for i in range(4):
            engine.add(Request("one", self.tokens(i % 2, PROMPT), Sampling(temperature=0, max_tokens=self.new)))
            found: list[int] = []
            while not found:
                found = [t for o in engine.step() for t in o.tokens]
            begin = time.perf_counter()
            while engine.has_work:
                found += [t for o in engine.step() for t in o.tokens]
            rates.append((self.new - 1) / (time.perf_counter() - begin))
            tokens = found
        return statistics.median(rates[1:]), tokens

    def _share(self, tokens_per_s: float) -> dict[str, Any]:
        per_token = cache_block_bytes(self.spec, self.dtype) / BLOCK
        weights = sum(p.nbytes for p in self.model.parameters())  # tied: read whole once, as the head
        read = weights + per_token * (PROMPT + self.new / 2)
        return {"bytes_per_token": read, "share_of_copy": read * tokens_per_s / self.copy_bytes_per_s, "bar": 0.8}

    def many(self) -> dict[str, Any]:
        chance = Random(0)
        lengths = [(chance.randint(100, self.longest), chance.randint(100, self.longest)) for _ in range(self.requests)]
        engine = self.engine(self.requests)
        self._serve(engine, [(20, 5)] * 3 + [(300, 3)] * 8)  # warm-up: compiles the kernels
        taken, steps, host = self._serve(engine, lengths)
        out = sum(n for _, n in lengths)
        least = self._least_seconds(lengths)
        return {
            "requests": self.requests,
            "output_tokens": out,
            "seconds": taken,
            "steps": steps,
            "host_seconds": host,
            "tokens_per_s": out / taken,
            "bar_tokens_per_s": 20_000,
            "least_seconds": least,
            "share_of_roofline": least / taken,
            "bar": 0.5,
            "preemptions": engine.scheduler.preemptions,
        }

    def _serve(self, engine: AsyncSchedulingEngine, lengths: list[tuple[int, int]]) -> tuple[float, int, float]:
        """(seconds from the first request to the last token, steps, seconds in which the host did not wait for the device)."""
        for i, (n, new) in enumerate(lengths):
            engine.add(Request(str(i), self.tokens(i, n), Sampling(temperature=0.6, seed=i, max_tokens=new, ignore_stop=True)))
        self.synchronize()
        begin, before = time.perf_counter(), engine.stats()["steps"]
        made = 0
        while engine.has_work:
            made += sum(len(o.tokens) for o in engine.step())
        taken = time.perf_counter() - begin
        assert made == sum(new for _, new in lengths)
        return taken, int(engine.stats()["steps"] - before), taken - engine.waited

    def _least_seconds(self, lengths: list[tuple[int, int]]) -> float:
        """A lower bound: all prompts in one step, then one step per token of the longest reply; weights are read once a step."""
        spec, per_token = self.spec, cache_block_bytes(self.spec, self.dtype) / BLOCK
        matrices = spec.parameters().matrix_active
        head = spec.vocab_size * spec.dim
        weights = matrices * self.dtype.itemsize

        def step(flops: float, read: float) -> float:
            return max(flops / self.flops_per_s, read / self.copy_bytes_per_s)

        prompt_flops = sum(2 * (matrices - head) * n + 2 * head + spec.attention_flops_per_token(n) * n for n, _ in lengths)
        total = step(prompt_flops, weights + per_token * sum(n for n, _ in lengths))
        for t in range(1, max(new for _, new in lengths)):
            contexts = [n + t for n, new in lengths if new > t]
            attention = 4 * spec.n_heads * spec.head_dim * spec.n_layers * sum(contexts)
            total += step(2 * matrices * len(contexts) + attention, weights + per_token * sum(contexts))
        return total

    def transformers(self) -> dict[str, Any]:
        """Run in a subprocess, so that it can be stopped at the deadline."""
        command = [sys.executable, "-m", "bench.gpu.serve", "--transformers", "--new", str(self.new)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=self.left(), check=False, cwd=ROOT)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1][:300] if done.stderr.strip() else "no reason given")
        return {**json.loads(done.stdout.strip().splitlines()[-1]), **self._share(1.0)} | {"share_of_copy": None}

    deadline = float("inf")

    def left(self) -> float:
        return max(5.0, self.deadline - time.monotonic())


def transformers_one(spec: ModelSpec, new: int) -> None:
    """Greedy decode of one reply with a static cache and a compiled forward; prints JSON."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tenfold.model.io.huggingface_config import config_from_spec

    fields = config_from_spec(spec, torch.bfloat16) | {"eos_token_id": None, "pad_token_id": 0}
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields)).eval()
    tokens = torch.randint(10, spec.vocab_size, (1, PROMPT), device="cuda")
    model.generation_config.cache_implementation = "static"
    rates = []
    for i in range(5):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
        )
        torch.cuda.synchronize()
        if i >= 2:
            rates.append(new / (time.perf_counter() - begin))
    print(json.dumps({"tokens_per_s": statistics.median(rates), "what": "static cache, compiled forward"}))


def headline(rows: list[dict[str, Any]]) -> Headline:
    parts = {r["case"]: r for r in rows if "tokens_per_s" in r}
    for part, asked, share in (("one", "one reply", "share_of_copy"), ("many", "256 requests", "share_of_roofline")):
        if r := parts.get(part):
            what = f"{r['gpu']}, serving 1B, {asked}: tokens/s; of what the machine allows"
            yield what, f"{r['tokens_per_s']:.0f}; {r[share]:.0%}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--new", type=int, default=512, help="tokens of a single reply")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--longest", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=0, help="fewer layers, for a quick trial")
    parser.add_argument("--vocab", type=int, default=0, help="a smaller vocabulary, for a quick trial")
    parser.add_argument("--seconds", type=float, default=145, help="seconds after the start at which transformers is stopped")
    parser.add_argument("--device", default="cuda", help="cpu runs the plain operations, for a quick trial")
    parser.add_argument("--transformers", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    begin = time.monotonic()
    spec = published_model("llama-3.2-1b")
    if given.layers:
        spec = replace(spec, n_layers=given.layers)
    if given.vocab:
        spec = replace(spec, vocab_size=given.vocab)
    if given.transformers:
        transformers_one(spec, given.new)
        return
    bench = Bench(spec, given.device, given.new, given.requests, given.longest)
    bench.deadline = begin + given.seconds
    name = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    for part in given.parts:
        started = time.monotonic()
        row: dict[str, Any] = {"case": part, "gpu": name}
        try:
            row |= getattr(bench, part)()
        except Exception as error:
            traceback.print_exc()
            row["failed"] = f"{type(error).__name__}: {error}"[:500]
        row["part_seconds"] = round(time.monotonic() - started, 1)
        bench.rows.append(row)
        print(json.dumps(row), flush=True)
        write_results("gpu_serve", bench.rows, headline(bench.rows))
        if given.device == "cuda":
            torch.cuda.empty_cache()
    print(f"\n{name}, {time.monotonic() - begin:.0f} s")
    for row in bench.rows:
        skip = ("case", "gpu", "part_seconds")
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items() if k not in skip}
        print(f"{row['case']:13} {shown}")


if __name__ == "__main__":
    main()
