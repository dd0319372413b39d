"""The engine with asynchronous scheduling: the device draws tokens, so a step can start before the last step's tokens are known.

While the device computes a step, the host reads the tokens of the step before, sends them on and schedules the next step. If a
token turns out to end its sequence, the step under way has one superfluous row for the sequence; that row's token is dropped.
"""

import time
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
from torch import Tensor

from tenfold.serve.engine.engine import Engine, make_input
from tenfold.serve.engine.scheduler import ScheduledSequence, SchedulerConfig
from tenfold.serve.request import Output, Request, Sequence
from tenfold.serve.runners.cuda import CudaRunner, Draw, Drawn
from tenfold.serve.runners.runner import BLOCK


@dataclass
class StepInFlight:
    """A step that the device computes.

    `sequences` are those whose next token it draws: each with the index of that token among the sequence's tokens, and whether
    the token before it was still unknown when the step started, so that a block which that token fills is not published yet.
    """

    drawn: Drawn
    sequences: list[tuple[Sequence, int, bool]]


class AsyncSchedulingEngine(Engine):
    """Continuous batching with one step under way.

    A step with a request whose tokens the host must draw is computed synchronously, as by `Engine`.
    """

    runner: CudaRunner

    def __init__(self, runner: CudaRunner, n_blocks: int, config: SchedulerConfig = SchedulerConfig()):
        super().__init__(runner, n_blocks, config)
        self._in_flight: StepInFlight | None = None
        self.waited = 0.0  # seconds that the host has waited for the device

    @torch.inference_mode()
    def step(self) -> list[Output]:
        self._queue_compiled()
        if not self._can_run_ahead():
            return self._finish_step() + super().step()
        outputs, self._finished = self._finished, []
        work = self.scheduler.step()
        try:
            started = self._start(work) if work else None
        except torch.AcceleratorError:  # this process can use the device no more
            raise
        except Exception:
            return outputs + self._finish_step() + self._wait_for(work)
        outputs += self._finish_step()
        self._in_flight = started
        return outputs

    def _wait_for(self, work: list[ScheduledSequence]) -> list[Output]:
        """Outputs of a step that could not be started, computed synchronously; the last step's tokens are known by then."""
        left = [w for w in work if w.sequence in self.scheduler.running]
        outputs = self._compute(left) if left else []
        self._count(sum(w.count for w in left))
        return outputs

    def _can_run_ahead(self) -> bool:
        """Whether the device can draw for all requests, and no sequence can be preempted while one of its tokens is unknown."""
        scheduler, config = self.scheduler, self.scheduler.config
        if scheduler.blocks.n_free < len(scheduler.running) + config.max_num_batched_tokens // BLOCK + 1:
            return False
        return all(s.request.is_plain for s in chain(scheduler.running, scheduler.waiting))

    def _start(self, work: list[ScheduledSequence]) -> StepInFlight:
        """Start a step. If the runner raises, no sequence has been changed.

        An unknown token stands in its sequence as -1 - i, i being its draw in this step.
        """
        rows, ends = make_input(work), accumulate(w.count for w in work)
        due = [(w, end) for w, end in zip(work, ends, strict=True) if w.is_complete]
        drawn = self.runner.start(rows, [end - 1 for _, end in due], self._draws([w for w, _ in due]))
        sequences = [(w.sequence, len(w.sequence.tokens), w.sequence.tokens[-1] < 0) for w, _ in due]
        for w in work:
            if w.sequence.tokens[-1] < 0:
                w.sequence.computed += w.count
            else:
                self.scheduler.computed(w.sequence, w.count)
        for i, (s, at, _) in enumerate(sequences):
            if not self._is_full(s, at + 1):
                s.tokens.append(-1 - i)
            for sibling in self._siblings.pop(s.request.id, ()):
                self.scheduler.add(sibling)
        self._count(len(rows.tokens))
        return StepInFlight(drawn, sequences)

    def _finish_step(self) -> list[Output]:
        """Wait for the step under way, and return its outputs."""
        step, self._in_flight = self._in_flight, None
        if step is None:
            return []
        outputs, begin = [], time.perf_counter()
        tokens = step.drawn.tokens()
        self.waited += time.perf_counter() - begin
        for (s, at, late), token in zip(step.sequences, tokens, strict=True):
            if s not in self.scheduler.running:  # finished or cancelled while the step was under way
                continue
            try:
                outputs.append(self._output_of(s, at, token, late))
            except Exception as error:
                outputs.append(self._fail(s, error))
        return outputs

    def _output_of(self, s: Sequence, at: int, token: int, late: bool) -> Output:
        """The output of a sequence whose token at index `at` has been drawn."""
        s.tokens[at : at + 1] = [token]
        if late:
            self.scheduler.publish(s, at - 1, at)
        p, output = s.request.sampling, Output(s.request.id, s.index, cached_tokens=s.cached_tokens)
        if token in p.stop_tokens and not p.ignore_stop:
            output.finish_reason = "stop"
        else:
            output.tokens.append(token)
            output.finish_reason = "length" if self._is_full(s, at + 1) else None
        if output.finish_reason:
            self._finish_sequence(s)
        return output

    def _draws(self, due: list[ScheduledSequence]) -> list[Draw]:
        return [Draw(w.sequence.request.sampling, w.sequence.state.seed, w.sequence.computed + w.count - 1) for w in due]

    # In synchronous steps, too, the device draws for the requests that it can draw for, so their tokens are the same.

    def _best(self, logits: Tensor, due: list[ScheduledSequence]) -> list[int]:
        return self.runner.draw(logits, self._draws(due)).tolist()

    def _is_settled(self, request: Request) -> bool:
        return request.sampling.is_plain
