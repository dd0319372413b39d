"""The engine with asynchronous scheduling: where the device draws tokens, a step starts before the last one's tokens are known.

While the device computes a step, the host reads the tokens of the step before, sends them on and schedules the next. A
sequence that turns out to be finished has one superfluous row in the step under way; its token is dropped.
"""

import time
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from tenfold.serve.engine.engine import Engine, make_input
from tenfold.serve.engine.scheduler import ScheduledSequence, SchedulerConfig
from tenfold.serve.request import Output, Request, Sequence
from tenfold.serve.runners.cuda import CudaRunner, Draw, Drawn
from tenfold.serve.runners.runner import BLOCK


@dataclass
class StepInFlight:
    """A step under way: its sequences, where their next tokens will stand, and whether a full block waits for that."""

    drawn: Drawn
    sequences: list[tuple[Sequence, int, bool]]


class AsyncSchedulingEngine(Engine):
    """Continuous batching with one step under way. A step with a request that needs the host to draw waits for its tokens."""

    runner: CudaRunner

    def __init__(self, runner: CudaRunner, n_blocks: int, config: SchedulerConfig = SchedulerConfig()):
        super().__init__(runner, n_blocks, config)
        self._in_flight: StepInFlight | None = None
        self.waited = 0.0  # seconds in which the host had nothing to do

    @torch.inference_mode()
    def step(self) -> list[Output]:
        self._queue_compiled()
        if not self._can_run_ahead():
            return self._land() + super().step()
        outputs, self._finished = self._finished, []
        work = self.scheduler.step()
        started = self._start(work) if work else None
        outputs += self._land()
        self._in_flight = started
        return outputs

    def _can_run_ahead(self) -> bool:
        """Whether the device can draw for all, and no sequence can lose its blocks while one of its tokens is unknown."""
        scheduler, config = self.scheduler, self.scheduler.config
        if scheduler.blocks.n_free < len(scheduler.running) + config.max_num_batched_tokens // BLOCK + 1:
            return False
        return all(s.request.is_plain for s in chain(scheduler.running, scheduler.waiting))

    def _start(self, work: list[ScheduledSequence]) -> StepInFlight:
        rows = make_input(work)
        chosen: list[int] = []
        draws: list[Draw] = []
        sequences: list[tuple[Sequence, int, bool]] = []
        end = 0
        for w in work:
            s, end = w.sequence, end + w.count
            late = s.tokens[-1] < 0
            complete = s.computed + w.count == len(s.tokens)
            if late:
                s.computed += w.count
            else:
                self.scheduler.computed(s, w.count)
            if complete:
                chosen.append(end - 1)
                draws.append(Draw(s.request.sampling, s.state.seed, s.computed - 1))
                sequences.append((s, len(s.tokens), late))
        started = StepInFlight(self.runner.start(rows, chosen, draws), sequences)
        for i, (s, at, _) in enumerate(sequences):
            if not self._is_full(s, at + 1):
                s.tokens.append(-1 - i)
            for sibling in self._siblings.pop(s.request.id, ()):
                self.scheduler.add(sibling)
        self._count(len(rows.tokens))
        return started

    def _land(self) -> list[Output]:
        """The outputs of the step under way."""
        step, self._in_flight = self._in_flight, None
        if step is None:
            return []
        outputs, begin = [], time.perf_counter()
        tokens = step.drawn.tokens()
        self.waited += time.perf_counter() - begin
        for (s, at, late), token in zip(step.sequences, tokens, strict=True):
            if s not in self.scheduler.running:  # finished or cancelled while the step was under way
                continue
            s.tokens[at : at + 1] = [token]
            if late:
                self.scheduler.publish(s, at - 1, at)
            p = s.request.sampling
            output = Output(s.request.id, s.index, cached_tokens=s.cached_tokens)
            if token in p.stop_tokens and not p.ignore_stop:
                output.finish_reason = "stop"
            else:
                output.tokens.append(token)
                output.finish_reason = "length" if self._is_full(s, at + 1) else None
            if output.finish_reason:
                self._leave(s)
            outputs.append(output)
        return outputs

    # Steps that wait: the device still draws for the requests that it would draw for in any step.

    def _best(self, logits: Tensor, due: list[ScheduledSequence]) -> list[int]:
        draws = [Draw(w.sequence.request.sampling, w.sequence.state.seed, w.sequence.computed + w.count - 1) for w in due]
        return self.runner.draw(logits, draws).tolist()

    def _is_settled(self, request: Request) -> bool:
        return request.sampling.is_plain
