"""The engine: requests in, tokens out, one step at a time. It runs in the process that calls `step`."""

import traceback
from collections import defaultdict

import torch
from torch import Tensor

from tenfold.serve.engine import sampling
from tenfold.serve.engine.blocks import BlockManager
from tenfold.serve.engine.grammar import GrammarTokenizer
from tenfold.serve.engine.pooling import Pooler
from tenfold.serve.engine.scheduler import ScheduledSequence, Scheduler, SchedulerConfig
from tenfold.serve.engine.speculate import Speculator
from tenfold.serve.request import FinishReason, Output, Request, Sequence, failed
from tenfold.serve.runners.runner import BLOCK, ModelInput, Runner
from tenfold.spec.errors import TenfoldError

FREE_ROWS = 4  # a step of this many rows takes about as long as a step of one, so guesses may fill them


class Engine:
    """Continuous batching over one model. Only one thread may use it."""

    def __init__(
        self,
        runner: Runner,
        n_blocks: int,
        config: SchedulerConfig = SchedulerConfig(),
        speculator: Speculator | None = None,
        grammars: GrammarTokenizer | None = None,
    ):
        self.runner, self.speculator, self.grammars = runner, speculator, grammars
        self.blocks = BlockManager(n_blocks, BLOCK)
        self.scheduler = Scheduler(self.blocks, config)
        limit = runner.spec.context
        self.max_model_len = min(config.max_model_len or limit, limit, n_blocks * BLOCK)
        self._pooler = Pooler(runner)
        self._siblings: dict[str, list[Sequence]] = {}
        self._finished: list[Output] = []
        self._counters: defaultdict[str, float] = defaultdict(float)

    def add(self, request: Request) -> None:
        """Queue a request. If it can never run, the next step answers it with an error."""
        if reason := self._refusal(request):
            self._finished.append(failed(request, reason))
            return
        n = request.sampling.n if request.generates else 1
        if request.generates and request.sampling.max_tokens == 0:
            self._finished += [Output(request.id, i, finish_reason="length") for i in range(n)]
            return
        fallback_seed = int(torch.randint(2**62, ()))
        sequences = [Sequence(request, i) for i in range(n)]
        for sequence in sequences:
            sequence.state = sampling.start(sequence, fallback_seed)
            if request.sampling.grammar is not None:
                assert self.grammars is not None
                sequence.state.matcher = self.grammars.matcher(request.sampling.grammar)
        self.scheduler.add(sequences[0])
        if len(sequences) > 1:  # they find the prompt in the cache once the first has computed it
            self._siblings[request.id] = sequences[1:]

    def _refusal(self, request: Request) -> str | None:
        """Why a request can never run, if so."""
        n = len(request.tokens)
        if not n:
            return "The prompt is empty: give at least one token."
        if (over := n + request.generates - self.max_model_len) > 0:
            return f"The prompt has {n} tokens: {over} too many for the context of {self.max_model_len} and an answer."
        return None

    def cancel(self, request_id: str) -> None:
        """Drop a request; its blocks are free when this returns."""
        self._siblings.pop(request_id, None)
        for sequence in self.scheduler.cancel(request_id):
            self._forget(sequence)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._finished)

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Compute one batch and return its outputs."""
        outputs, self._finished = self._finished, []
        work = self.scheduler.step()
        if not work:
            return outputs
        hidden = self.runner.hidden(make_input(work))
        outputs += self._continue(work, hidden)
        self._count(sum(w.count for w in work))
        self._propose()
        return outputs

    def _count(self, rows: int) -> None:
        self._counters["steps"] += 1
        self._counters["rows"] += rows

    def _continue(self, work: list[ScheduledSequence], hidden: Tensor) -> list[Output]:
        """Draw the next token of each sequence whose last token was computed."""
        chosen: list[int] = []
        complete: list[tuple[ScheduledSequence, int]] = []
        at = 0
        outputs = []
        for w in work:
            s, end = w.sequence, at + w.count
            is_complete = s.computed + w.count - w.drafted == len(s.tokens)
            if not s.request.generates:
                self._pooler.add(s, hidden[at:end])
            if is_complete and s.request.generates:
                complete.append((w, len(chosen)))
                chosen += range(end - w.drafted - 1, end)
            else:
                self.scheduler.computed(s, w.count)
            if is_complete and not s.request.generates:
                outputs.append(self._pooler.finish(s))
                self._leave(s)
            at = end
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
        except Exception as error:  # whatever it is, the other requests go on
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
        """Append a token to its sequence and, unless it is a stop token, to the output."""
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
        """Guess tokens for the next step, where that leaves room."""
        running = self.scheduler.running
        room = FREE_ROWS // max(1, len(running)) - 1
        if self.speculator is None or room <= 0:
            return
        for s in running:
            left = min(s.request.sampling.max_tokens - s.n_output, self.max_model_len - len(s.tokens)) - 1
            if s.computed == len(s.tokens) - 1 and left > 0 and s.n_output and s.state.matcher is None:
                s.draft = self.speculator.propose(s)[: min(room, left)]

    def _leave(self, s: Sequence) -> None:
        self.scheduler.finish(s)
        self._forget(s)

    def _forget(self, s: Sequence) -> None:
        self._pooler.forget(s)
        if self.speculator:
            self.speculator.forget(s)

    def stats(self) -> dict[str, float]:
        """Numbers for the metrics."""
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


def make_input(work: list[ScheduledSequence]) -> ModelInput:
    """The runner's input for the scheduled sequences."""
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
