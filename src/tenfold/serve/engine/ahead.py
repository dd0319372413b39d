"""The engine for devices that draw tokens themselves: the next batch starts before the last one's tokens are known here.

While the device computes a step, the host reads the tokens of the step before, sends them on and plans the next. A reply
that turns out to be over has one row too many in the step that is under way; nobody reads it.
"""

import time
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from tenfold.serve.engine.engine import Engine, make_rows
from tenfold.serve.engine.request import Output, Request, Sequence
from tenfold.serve.engine.scheduler import ScheduledSequence
from tenfold.serve.runners.cuda import CudaRunner, Draw, Drawn
from tenfold.serve.runners.runner import BLOCK


@dataclass
class Flight:
    """A step under way: its sequences, where their next tokens will stand, and whether a full block waits for that."""

    drawn: Drawn
    sequences: list[tuple[Sequence, int, bool]]


class AheadEngine(Engine):
    """Continuous batching with one step under way; steps with a request that the host must draw for wait for their tokens."""

    runner: CudaRunner

    def __init__(self, runner: CudaRunner, n_blocks: int, **options: Any):
        super().__init__(runner, n_blocks, **{**options, "speculate": False})
        self._flight: Flight | None = None
        self.waited = 0.0  # seconds that the host had nothing to do in

    @torch.inference_mode()
    def step(self) -> list[Output]:
        if not self._can_run_ahead():
            return self._land() + super().step()
        outputs, self._finished = self._finished, []
        work = self.scheduler.step()
        flight = self._start(work) if work else None
        outputs += self._land()
        self._flight = flight
        return outputs

    def _can_run_ahead(self) -> bool:
        """Whether the device can draw for all, and nobody can lose blocks while a token is not known here."""
        scheduler = self.scheduler
        if scheduler.blocks.n_free < len(scheduler.running) + scheduler.token_budget // BLOCK + 1:
            return False
        next_ones = islice(scheduler.waiting, scheduler.max_running)
        return all(s.request.is_plain for s in chain(scheduler.running, next_ones))

    def _start(self, work: list[ScheduledSequence]) -> Flight:
        now = time.monotonic()
        rows = make_rows(work)
        chosen: list[int] = []
        draws: list[Draw] = []
        sequences: list[tuple[Sequence, int, bool]] = []
        end = 0
        for w in work:
            s, end = w.sequence, end + w.count
            s.first_scheduled = s.first_scheduled or now
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
        flight = Flight(self.runner.start(rows, chosen, draws), sequences)
        for i, (s, at, _) in enumerate(sequences):
            if not self._is_full(s, at + 1):
                s.tokens.append(-1 - i)
            for sibling in self._siblings.pop(s.request.id, ()):
                self.scheduler.add(sibling)
        self._counters["steps"] += 1
        self._counters["rows"] += len(rows.tokens)
        return flight

    def _land(self) -> list[Output]:
        """What the step under way drew."""
        flight, self._flight = self._flight, None
        if flight is None:
            return []
        outputs, begin = [], time.perf_counter()
        tokens = flight.drawn.tokens()
        self.waited += time.perf_counter() - begin
        for (s, at, late), token in zip(flight.sequences, tokens, strict=True):
            if s not in self.scheduler.running:  # over, or cancelled, while the step was under way
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

    def _is_full(self, s: Sequence, length: int) -> bool:
        return length - s.n_prompt >= s.request.sampling.max_tokens or length >= self.context

    # Steps that wait: the device still draws for those that it would draw for in any step.

    def _best(self, logits: Tensor, complete: list[tuple[ScheduledSequence, int]]) -> list[int]:
        draws = [
            Draw(w.sequence.request.sampling, w.sequence.state.seed, w.sequence.computed + w.count - 1) for w, _ in complete
        ]
        return self.runner.draw(logits, draws).tolist()

    def _is_settled(self, request: Request) -> bool:
        return request.sampling.is_plain
