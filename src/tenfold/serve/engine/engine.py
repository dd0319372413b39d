"""The engine: takes requests and generates their tokens, one step at a time, in the process that calls `step`."""

import traceback
from collections import defaultdict
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from tenfold.serve.engine import sampling
from tenfold.serve.engine.blocks import BlockManager
from tenfold.serve.engine.grammar import GrammarCompiler, Matcher
from tenfold.serve.engine.pooling import Pooler
from tenfold.serve.engine.scheduler import ScheduledSequence, Scheduler, SchedulerConfig
from tenfold.serve.engine.speculate import DraftSpeculator, Speculator
from tenfold.serve.request import FinishReason, Output, Request, Sequence, failed
from tenfold.serve.runners.runner import BLOCK, ModelInput, Runner
from tenfold.spec.errors import TenfoldError

_COMPILING_SECONDS = 0.01  # for which a step without other work waits for a grammar to be compiled
FREE_ROWS = 4  # a step of so many rows takes about as long as a step of one, so guesses may fill them


class Engine:
    """Continuous batching over one model. Only one thread may use it."""

    def __init__(
        self,
        runner: Runner,
        n_blocks: int,
        config: SchedulerConfig = SchedulerConfig(),
        speculator: Speculator | None = None,
        grammars: GrammarCompiler | None = None,
    ):
        self.runner, self.speculator, self.grammars = runner, speculator, grammars
        self.blocks = BlockManager(n_blocks, BLOCK)
        self.scheduler = Scheduler(self.blocks, config)
        limit = runner.spec.context
        self.max_model_len = min(config.max_model_len or limit, limit, n_blocks * BLOCK)
        self._pooler = Pooler(runner)
        self._siblings: dict[str, list[Sequence]] = {}
        self._compiling: dict[str, tuple[Request, Future[Any]]] = {}
        self._finished: list[Output] = []
        self._counters: defaultdict[str, float] = defaultdict(float)

    def add(self, request: Request) -> None:
        """Queue a request. If it can never run, the next step returns an output with an error for it."""
        if reason := self._refusal(request):
            self._finished.append(failed(request, reason))
            return
        n = request.sampling.n if request.generates else 1
        if request.generates and request.sampling.max_tokens == 0:
            self._finished += [Output(request.id, i, finish_reason="length") for i in range(n)]
            return
        if request.sampling.grammar is None:
            self._queue(request)
        else:
            assert self.grammars is not None
            self._compiling[request.id] = request, self.grammars.compile(request.sampling.grammar)

    def _queue(self, request: Request, grammar: Any = None) -> None:
        """Hand the sequences of a request to the scheduler, with its compiled grammar if it has one."""
        fallback_seed = int(torch.randint(2**62, ()))
        sequences = [Sequence(request, i) for i in range(request.sampling.n if request.generates else 1)]
        for sequence in sequences:
            sequence.state = sampling.start(sequence, fallback_seed)
            sequence.state.matcher = None if grammar is None else Matcher(grammar)
        self.scheduler.add(sequences[0])
        if len(sequences) > 1:  # added once the first has computed the prompt, which they then find in the cache
            self._siblings[request.id] = sequences[1:]

    def _refusal(self, request: Request) -> str | None:
        """Why a request can never run; None if it can."""
        n = len(request.tokens)
        if not n:
            return "The prompt is empty: give at least one token."
        if (over := n + (request.generates and request.sampling.max_tokens > 0) - self.max_model_len) > 0:
            return f"The prompt has {n} tokens: {over} too many for the context of {self.max_model_len} and an answer."
        vocab, s = self.runner.spec.vocab_size, request.sampling
        for what, tokens in (("The prompt", request.tokens), ("logit_bias", s.logit_bias), ("stop_tokens", s.stop_tokens)):
            if tokens and not 0 <= min(tokens) <= max(tokens) < vocab:
                return f"{what} has a token outside the model's vocabulary of {vocab}."
        return None

    def _queue_compiled(self) -> None:
        """Queue the requests whose grammars have been compiled; without other work, wait briefly for one."""
        if self._compiling and not (self.scheduler.has_work or self._finished):
            wait([future for _, future in self._compiling.values()], _COMPILING_SECONDS, FIRST_COMPLETED)
        for name, (request, future) in list(self._compiling.items()):
            if not future.done():
                continue
            del self._compiling[name]
            if (error := future.exception()) is None:
                self._queue(request, future.result())
            else:
                self._finished.append(failed(request, _reason(error)))

    def cancel(self, request_id: str) -> None:
        """Drop a request; its blocks are free when this returns."""
        self._siblings.pop(request_id, None)
        self._compiling.pop(request_id, None)
        for sequence in self.scheduler.cancel(request_id):
            self._forget(sequence)

    def sleep(self) -> None:
        """Finish all requests, dropping their outputs, and free the runners' caches.

        Call it when no caller waits for an output, and `wake_up` before the next request.
        """
        while self.has_work:
            self.step()
        self.blocks.forget()
        for runner in self._runners:
            runner.sleep()

    def wake_up(self) -> None:
        """Allocate empty caches, so that requests can be computed again."""
        for runner in self._runners:
            runner.wake_up()

    @property
    def _runners(self) -> list[Runner]:
        return [self.runner, *([self.speculator.runner] if isinstance(self.speculator, DraftSpeculator) else [])]

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._finished or self._compiling)

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Compute one batch and return its outputs."""
        self._queue_compiled()
        outputs, self._finished = self._finished, []
        work = self.scheduler.step()
        if not work:
            return outputs
        outputs += self._compute(work)
        self._count(sum(w.count for w in work))
        self._propose()
        return outputs

    def _count(self, rows: int) -> None:
        self._counters["steps"] += 1
        self._counters["rows"] += rows

    def _compute(self, work: list[ScheduledSequence]) -> list[Output]:
        """Outputs of the scheduled sequences.

        If the batch fails, each sequence is computed alone, and a request whose sequence fails alone ends with an error.
        """
        try:
            hidden = self.runner.hidden(make_input(work))
            drawn = self._logits(work, hidden)
        except torch.AcceleratorError:  # this process can use the device no more
            raise
        except Exception as error:
            if len(work) > 1:
                return [output for w in work if w.sequence in self.scheduler.running for output in self._compute([w])]
            return [self._fail(work[0].sequence, error)]
        outputs, at = [], 0
        for w in work:
            rows, at = hidden[at : at + w.count], at + w.count
            if w.sequence not in self.scheduler.running:  # its request ended when another sequence of it failed
                continue
            try:
                outputs += self._continue(w, rows, drawn.get(w.sequence))
            except Exception as error:
                outputs.append(self._fail(w.sequence, error))
        return outputs

    def _logits(self, work: list[ScheduledSequence], hidden: Tensor) -> dict[Sequence, tuple[Tensor, list[int]]]:
        """Logits [1 + drafted, vocab] of each sequence whose next token is due, and the best token of each row."""
        ends = accumulate(w.count for w in work)
        due = [(w, end) for w, end in zip(work, ends, strict=True) if w.sequence.request.generates and w.is_complete]
        if not due:
            return {}
        logits = self.runner.logits(hidden[[row for w, end in due for row in range(end - w.drafted - 1, end)]])
        best, logits, at = self._best(logits, [w for w, _ in due]), logits.cpu(), 0
        found = {}
        for w, _ in due:
            rows = slice(at, at := at + w.drafted + 1)
            found[w.sequence] = logits[rows], best[rows]
        return found

    def _continue(self, w: ScheduledSequence, hidden: Tensor, drawn: tuple[Tensor, list[int]] | None) -> list[Output]:
        """Outputs of one sequence from its hidden states, and from logits and best tokens if its next token is due (`drawn`)."""
        s = w.sequence
        if drawn is not None:
            return [self._advance(w, *drawn)]
        is_complete = w.is_complete
        if not s.request.generates:
            self._pooler.add(s, hidden)
        self.scheduler.computed(s, w.count)
        if not is_complete:
            return []
        output = self._pooler.finish(s)
        self._finish_sequence(s)
        return [output]

    def _fail(self, s: Sequence, error: BaseException) -> Output:
        """End a request with all its sequences; other requests go on."""
        self.cancel(s.request.id)
        return failed(s.request, _reason(error))

    def _advance(self, w: ScheduledSequence, logits: Tensor, best: list[int]) -> Output:
        """Draw one token, and after each guess that equals the draw one more. `logits` are [1 + drafted, vocab]."""
        s, p = w.sequence, w.sequence.request.sampling
        output = Output(s.request.id, s.index, cached_tokens=s.cached_tokens)
        draft, s.draft = s.draft[: w.drafted], []
        accepted = 0
        for row, guess in enumerate([*draft, None]):
            token = self._draw(logits[row], best[row], s)
            output.finish_reason = self._append(s, token, output)
            if p.logprobs is not None:
                output.logprobs.append(sampling.logprob(logits[row], token, p.logprobs, s.state.drawn))
            if output.finish_reason or token != guess:
                break
            accepted += 1
        if self.speculator and draft:
            self.speculator.learn(s, len(draft), accepted)
        self.scheduler.computed(s, w.count - w.drafted + accepted)
        for sibling in self._siblings.pop(s.request.id, ()):
            self.scheduler.add(sibling)
        if output.finish_reason:
            self._finish_sequence(s)
        return output

    def _best(self, logits: Tensor, due: list[ScheduledSequence]) -> list[int]:
        """A token for each row: the final draw of requests for which `_is_settled`, unused for others."""
        return sampling.best(logits)

    def _is_settled(self, request: Request) -> bool:
        """Whether the token that `_best` gives is the request's draw."""
        return request.sampling.is_plain and request.sampling.temperature < 1e-5

    def _draw(self, logits: Tensor, best: int, s: Sequence) -> int:
        p, state = s.request.sampling, s.state
        if self._is_settled(s.request):
            token = best
        else:
            logits = sampling.adjust(logits, s, state)
            if state.matcher is not None:
                logits = state.matcher.mask(logits)
            token = sampling.draw(logits, p, state)
        if p.logprobs is not None:
            state.drawn = sampling.drawn_logprob(logits, p, token)
        return token

    def _append(self, s: Sequence, token: int, output: Output) -> FinishReason | None:
        """Append a token to its sequence and, unless it is a stop token, to the output. Returns the finish reason, if any."""
        p = s.request.sampling
        s.tokens.append(token)
        s.state.counts[token] += 1
        over = s.state.matcher is not None and s.state.matcher.accept(token)
        if token in p.stop_tokens and not p.ignore_stop:
            return "stop"
        output.tokens.append(token)
        if over:
            return "stop"
        return "length" if self._is_full(s, len(s.tokens)) else None

    def _is_full(self, s: Sequence, length: int) -> bool:
        """Whether a sequence of this length must end."""
        return length - s.n_prompt >= s.request.sampling.max_tokens or length >= self.max_model_len

    def _propose(self) -> None:
        """Have the speculator guess tokens for the next step, if that has free rows."""
        running = self.scheduler.running
        room = FREE_ROWS // max(1, len(running)) - 1
        if self.speculator is None or room <= 0:
            return
        for s in running:
            left = min(s.request.sampling.max_tokens - s.n_output, self.max_model_len - len(s.tokens)) - 1
            if s.computed == len(s.tokens) - 1 and left > 0 and s.n_output and s.state.matcher is None:
                s.draft = self.speculator.propose(s)[: min(room, left)]

    def _finish_sequence(self, s: Sequence) -> None:
        self.scheduler.finish(s)
        self._forget(s)

    def _forget(self, s: Sequence) -> None:
        self._pooler.forget(s)
        if self.speculator:
            self.speculator.forget(s)

    def stats(self) -> dict[str, float]:
        """The engine's gauges and counters, as `api/metrics.py` reads them."""
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


def _reason(error: BaseException) -> str:
    """The message for the client whose request failed. The traceback of an unexpected error is printed."""
    if isinstance(error, TenfoldError):
        return str(error)
    traceback.print_exception(error)
    return "The engine failed on this request."


def make_input(work: list[ScheduledSequence]) -> ModelInput:
    """The runner's input for the scheduled sequences, with their guesses."""
    rows = ModelInput([], [], [], [])
    for i, w in enumerate(work):
        s, begin = w.sequence, w.sequence.computed
        certain = w.count - w.drafted
        rows.tokens += s.tokens[begin : begin + certain] + s.draft[: w.drafted]
        rows.positions += range(begin, begin + w.count)
        rows.counts.append(w.count)
        rows.prompts.append(min(w.count, max(0, s.n_prompt - begin)))
        rows.tables.append(s.blocks)
        rows.adapters.append(s.request.adapter)
        rows.pictures += [(i, p) for p in s.request.pictures if p.patches[0] < begin + w.count and begin <= p.patches[-1]]
    return rows
