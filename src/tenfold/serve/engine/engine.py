"""The engine: requests in, tokens out, one step at a time. It runs in whatever process calls `step`."""

import os
import time
import traceback
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tenfold.model.io.huggingface import read_model
from tenfold.serve.engine import sampling
from tenfold.serve.engine.blocks import BlockManager
from tenfold.serve.engine.grammar import GrammarTokenizer
from tenfold.serve.engine.request import FinishReason, Output, Request, Sequence
from tenfold.serve.engine.scheduler import ScheduledSequence, Scheduler
from tenfold.serve.engine.speculate import DraftSpeculator, Speculator
from tenfold.serve.options import EngineOptions
from tenfold.serve.runners import cuda, native
from tenfold.serve.runners.runner import BLOCK, ModelInput, Runner, TorchRunner, cache_block_bytes
from tenfold.spec.errors import TenfoldError

TOKEN_BUDGET = {"cpu": 128, "cuda": 2048}  # a step this large takes some tens of milliseconds
PROMPT_BUDGET = 256  # of one in which nobody is being answered, where prompts go through a matrix unit
FREE_ROWS = 4  # a step of so many rows takes about as long as a step of one: what guesses may fill


class Engine:
    """Continuous batching over one model. Not for several threads at once."""

    def __init__(
        self,
        runner: Runner,
        n_blocks: int,
        *,
        token_budget: int = 128,
        prompt_budget: int = 0,
        max_running: int = 64,
        context: int = 0,
        speculate: bool = True,
        speculator: Speculator | None = None,
        grammars: GrammarTokenizer | None = None,
    ):
        self.runner, self.grammars = runner, grammars
        self.blocks = BlockManager(n_blocks, BLOCK)
        self.scheduler = Scheduler(self.blocks, token_budget, max_running, prompt_budget)
        self.context = min(context or runner.spec.context, runner.spec.context, n_blocks * BLOCK)
        self.speculator = (speculator or Speculator()) if speculate else None
        self._siblings: dict[str, list[Sequence]] = {}
        self._finished: list[Output] = []
        self._sums: dict[str, Tensor] = {}  # of hidden states, for embeddings
        self._counters: defaultdict[str, float] = defaultdict(float)

    def add(self, request: Request) -> None:
        """Queue a request. One that can never run is answered with an error by the next step."""
        if not request.tokens:
            return self._refuse(request, "The prompt is empty: give at least one token.")
        if (over := len(request.tokens) + (not request.embed) - self.context) > 0:
            return self._refuse(
                request,
                f"The prompt has {len(request.tokens)} tokens: {over} too many for the context of {self.context} and an answer.",
            )
        if request.sampling.max_tokens == 0 and not request.embed:
            self._finished += [Output(request.id, i, finish_reason="length") for i in range(request.sampling.n)]
            return None
        fallback = int(torch.randint(2**62, ()))
        sequences = [Sequence(request, i, arrived=time.monotonic()) for i in range(1 if request.embed else request.sampling.n)]
        for sequence in sequences:
            sequence.state = sampling.start(sequence, fallback)
            if request.sampling.grammar is not None:
                assert self.grammars is not None
                sequence.state.matcher = self.grammars.matcher(request.sampling.grammar)
        self.scheduler.add(sequences[0])
        if len(sequences) > 1:  # they find the prompt in the cache once the first has computed it
            self._siblings[request.id] = sequences[1:]
        return None

    def cancel(self, request_id: str) -> None:
        """Drop a request; its blocks are free when this returns."""
        self._siblings.pop(request_id, None)
        self._sums.pop(request_id, None)
        for sequence in self.scheduler.cancel(request_id):
            self._forget(sequence)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._finished)

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Compute one batch and give what came of it."""
        outputs, self._finished = self._finished, []
        work = self.scheduler.step()
        if not work:
            return outputs
        now = time.monotonic()
        for w in work:
            w.sequence.first_scheduled = w.sequence.first_scheduled or now
        hidden = self.runner.hidden(make_rows(work))
        outputs += self._continue(work, hidden)
        self._counters["steps"] += 1
        self._counters["rows"] += sum(w.count for w in work)
        self._propose()
        return outputs

    def _continue(self, work: list[ScheduledSequence], hidden: Tensor) -> list[Output]:
        """Draw what follows the sequences whose last token was computed."""
        chosen: list[int] = []
        complete: list[tuple[ScheduledSequence, int]] = []
        at = 0
        outputs = []
        for w in work:
            s = w.sequence
            if s.request.embed:
                self._sums[s.request.id] = self._sums.get(s.request.id, 0) + hidden[at : at + w.count].sum(0)
            if s.computed + w.count - w.drafted < len(s.tokens):
                self.scheduler.computed(s, w.count)
            elif s.request.embed:
                self.scheduler.computed(s, w.count)
                outputs.append(self._embedding(s))
            else:
                complete.append((w, len(chosen)))
                chosen += range(at + w.count - w.drafted - 1, at + w.count)
            at += w.count
        if complete:
            logits = self.runner.logits(hidden[chosen])
            best = self._best(logits, complete)
            logits = logits.cpu()
            for w, first in complete:
                rows = slice(first, first + w.drafted + 1)
                outputs.append(self._advance(w, logits[rows], best[rows]))
        return outputs

    def _advance(self, w: ScheduledSequence, logits: Tensor, best: list[int]) -> Output:
        """Draw one token, and one more for each guess that it agreed with. logits [1 + drafted, vocab]."""
        s, p = w.sequence, w.sequence.request.sampling
        output = Output(s.request.id, s.index, cached_tokens=s.cached_tokens)
        draft, s.draft = s.draft[: w.drafted], []
        accepted = 0
        try:
            for row, guess in enumerate([*draft, None]):
                token = self._draw(logits[row], best[row], s)
                output.finish_reason = self._take(s, token, output)
                if p.logprobs is not None and output.tokens and output.finish_reason != "stop":
                    output.logprobs.append(sampling.logprob(logits[row], token, p.logprobs))
                if output.finish_reason or token != guess:
                    break
                accepted += 1
        except Exception as error:  # whatever it is, the others go on
            output.finish_reason, output.error = "error", str(error)
            if not isinstance(error, TenfoldError):
                traceback.print_exc()
                output.error = "The engine failed on this request."
        if self.speculator and draft:
            self.speculator.learn(s, len(draft), accepted)
        self.scheduler.computed(s, w.count - w.drafted + accepted)
        for sibling in self._siblings.pop(s.request.id, ()):
            sibling.cached_tokens = 0
            self.scheduler.add(sibling)
        if output.finish_reason:
            self._leave(s)
        return output

    def _best(self, logits: Tensor, complete: list[tuple[ScheduledSequence, int]]) -> list[int]:
        """A token for each row, which is the draw where `_is_settled` says so."""
        return sampling.best(logits)

    def _is_settled(self, request: Request) -> bool:
        return request.sampling.is_plain and request.sampling.temperature < 1e-5

    def _draw(self, logits: Tensor, best: int, s: Sequence) -> int:
        p, state = s.request.sampling, s.state
        if self._is_settled(s.request):
            return best
        logits = sampling.adjust(logits, s, state)
        if state.matcher is not None:
            logits = state.matcher.mask(logits)
        return sampling.draw(logits, p, state)

    def _take(self, s: Sequence, token: int, output: Output) -> FinishReason | None:
        """Append a token to its sequence and, unless it ends it, to the output."""
        p = s.request.sampling
        s.tokens.append(token)
        s.state.counts[token] += 1
        over = s.state.matcher is not None and s.state.matcher.accept(token)
        if token in p.stop_tokens and not p.ignore_stop:
            return "stop"
        output.tokens.append(token)
        if over:
            return "stop"
        return "length" if s.n_output >= p.max_tokens or len(s.tokens) >= self.context else None

    def _embedding(self, s: Sequence) -> Output:
        mean = self._sums.pop(s.request.id).float() / s.n_prompt
        self._leave(s)
        return Output(s.request.id, 0, finish_reason="stop", embedding=(mean / mean.norm().clamp(min=1e-12)).tolist())

    def _propose(self) -> None:
        running = self.scheduler.running
        room = FREE_ROWS // max(1, len(running)) - 1
        if self.speculator is None or room <= 0:
            return
        for s in running:
            left = min(s.request.sampling.max_tokens - s.n_output, self.context - len(s.tokens)) - 1
            if s.computed == len(s.tokens) - 1 and left > 0 and s.n_output and s.state.matcher is None:
                s.draft = self.speculator.propose(s)[: min(room, left)]

    def _refuse(self, request: Request, reason: str) -> None:
        self._finished.append(Output(request.id, 0, finish_reason="error", error=reason))

    def _leave(self, s: Sequence) -> None:
        self.scheduler.finish(s)
        self._forget(s)

    def _forget(self, s: Sequence) -> None:
        if self.speculator:
            self.speculator.forget(s)

    def stats(self) -> dict[str, float]:
        """How things stand, for the metrics."""
        scheduler, speculator = self.scheduler, self.speculator
        return {
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting) + sum(map(len, self._siblings.values())),
            "blocks": self.blocks.n_blocks,
            "free_blocks": self.blocks.n_free,
            "preemptions": scheduler.preemptions,
            "prefix_queries": scheduler.prefix_queries,
            "prefix_hits": scheduler.prefix_hits,
            "drafted": speculator.drafted if speculator else 0,
            "accepted": speculator.accepted if speculator else 0,
            "steps": self._counters["steps"],
            "rows": self._counters["rows"],
        }


def make_rows(work: list[ScheduledSequence]) -> ModelInput:
    """What a runner computes of some work."""
    rows = ModelInput([], [], [], [])
    for w in work:
        s, begin = w.sequence, w.sequence.computed
        certain = w.count - w.drafted
        rows.tokens += s.tokens[begin : begin + certain] + s.draft[: w.drafted]
        rows.positions += range(begin, begin + w.count)
        rows.counts.append(w.count)
        rows.prompts.append(min(w.count, max(0, s.n_prompt - begin)))
        rows.tables.append(s.blocks)
    return rows


def make_runner(options: EngineOptions) -> tuple[Runner, int]:
    """The model of `options` ready to run, and how many blocks its cache has.

    On a GPU its own kernels, on a CPU the compiled step, where they fit the model and can be had; else PyTorch. Raises
    TenfoldError for what cannot be read or run.
    """
    threads = options.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    on_gpu = options.device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        raise TenfoldError("There is no GPU that PyTorch can use: serve with --device cpu.")
    if on_gpu and options.weights not in ("exact", "bfloat16", "float32"):
        raise TenfoldError(f"Weights in {options.weights} are for CPUs: leave --weights out on a GPU.")
    dtype = torch.bfloat16 if options.device != "cpu" and options.weights != "float32" else torch.float32
    model = read_model(options.path, dtype).to(options.device)
    n_blocks = int(options.cache_gib * 2**30 / cache_block_bytes(model.spec, dtype))
    if n_blocks < 2:
        raise TenfoldError(f"A cache of {options.cache_gib} GiB holds no two blocks of {model.spec.name}: allow more.")
    if on_gpu and options.compiled and cuda.fits(model.spec):
        return cuda.CudaRunner(model, n_blocks, options.max_running, options.context), n_blocks
    if options.device == "cpu" and options.compiled and native.fits(model.spec) and native.library():
        runner = native.NativeRunner(model, n_blocks, options.weights, threads)
        torch.set_num_threads(1)  # two pools of threads would fight for the cores
        return runner, n_blocks
    return TorchRunner(model, n_blocks), n_blocks


def make_engine(options: EngineOptions, grammars: Any = None) -> Engine:
    """An engine for `options`: one step ahead where the runner draws tokens itself. Raises TenfoldError as `make_runner`."""
    from tenfold.serve.engine.ahead import AheadEngine  # it is made of this module's Engine

    runner, n_blocks = make_runner(options)
    on_tiles = isinstance(runner, native.NativeRunner) and runner.tiles
    settings: dict[str, Any] = {
        "token_budget": options.token_budget or TOKEN_BUDGET.get(options.device.split(":")[0], 128),
        "prompt_budget": PROMPT_BUDGET if on_tiles and not options.token_budget else 0,
        "max_running": options.max_running,
        "context": options.context,
        "speculate": options.speculate,
        "grammars": grammars,
    }
    if isinstance(runner, cuda.CudaRunner):
        if options.draft is not None:
            raise TenfoldError("Draft models are for CPUs: leave --draft out on a GPU.")
        return AheadEngine(runner, n_blocks, **settings)
    if options.draft is not None:
        settings["speculator"] = _draft_of(options, runner.spec.vocab_size)
    return Engine(runner, n_blocks, **settings)


def _draft_of(options: EngineOptions, vocab_size: int) -> DraftSpeculator:
    assert options.draft is not None
    draft, n_blocks = make_runner(replace(options, path=options.draft, cache_gib=options.cache_gib / 4))
    if draft.spec.vocab_size != vocab_size:
        raise TenfoldError(f"The draft model has {draft.spec.vocab_size} tokens and the model {vocab_size}: they must share them.")
    return DraftSpeculator(draft, n_blocks)
