"""Health checks of a run: loss spikes, processes that are slower than others, and computations that do not repeat.

A run whose loss spikes goes back to an earlier checkpoint and skips the batches since then (as PaLM's did, arXiv 2204.02311,
section 5.1).

All processes wait for the slowest, so a step takes equally long on each. Stragglers are therefore found by how long a process waits
for its batches, and by how long a matrix product takes that it computes on its own.
"""

import math
import socket
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tenfold.spec.errors import TenfoldError
from tenfold.train.hook import Hook
from tenfold.train.rollback import LossSpike
from tenfold.train.run import Run
from tenfold.train.state import StepOutput

WARM_UP = 50  # steps before the usual loss is known; also the number of steps that it averages over
PATIENCE = 10  # steps in a row whose loss must be too high for a spike
LOOK_EVERY = 50  # steps between searches for stragglers
LATE = 0.1  # a straggler waits longer for its batches than the others, by this share of a step
SLOW = 1.5  # a straggler's product takes this many times as long as the others'


class LossSpikeDetector:
    """Detects losses more than `above` nats over the usual loss.

    `usual` is a moving average of the losses, `seen` the number of steps it has seen, `step` the step that the run starts from.
    """

    def __init__(self, above: float, usual: float = 0.0, seen: int = 0, step: int = 0):
        self._above, self.usual, self.seen = above, usual, seen
        self._last_step = self._last_good = step
        self._high = 0

    def look(self, loss: float, step: int) -> None:
        """Process the loss after `step` steps, which stands for all steps since the previous call.

        Raises LossSpike if more than one loss in a row was too high, over at least `PATIENCE` steps. The run then goes back another
        `PATIENCE` steps, because the cause came before the first high loss.
        """
        high = self.seen >= WARM_UP and loss > self.usual + self._above
        steps, self._last_step = step - self._last_step, step
        self._high = self._high + 1 if high else 0
        if not high:
            self._last_good = step
            if math.isfinite(loss):
                self.seen += steps
                self.usual += (loss - self.usual) * min(1.0, steps / min(self.seen, WARM_UP))
        elif self._high > 1 and step - self._last_good >= PATIENCE:
            raise LossSpike(step, self._last_good - PATIENCE)


class LossSpikes(Hook):
    """Raises LossSpike, so that `fit` rolls the run back, if a loss is more than `above` nats too high; 0 never does.

    `before` is called first: it waits for a save in progress.
    """

    def __init__(self, above: float, before: Callable[[], None]):
        self._above, self._before = above, before
        self._state: dict[str, Any] = {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = state

    def start(self, run: Run) -> None:
        self._detector = LossSpikeDetector(self._above, **self._state, step=run.state.step)

    def after_step(self, run: Run, done: StepOutput) -> None:
        if done.loss is None or not self._above:
            return
        try:
            self._detector.look(done.loss, run.state.step)
        except LossSpike:
            self._before()
            raise

    def state_dict(self) -> dict[str, Any]:
        return {"usual": self._detector.usual, "seen": self._detector.seen}


class Stragglers(Hook):
    """Records, as the event "straggler", which processes slow down the others."""

    def __init__(self) -> None:
        self._waited_s = 0.0

    def after_step(self, run: Run, done: StepOutput) -> None:
        self._waited_s += run.waited_s
        if run.dims.alone or run.state.step % LOOK_EVERY:
            return
        for slow in stragglers(self._waited_s / LOOK_EVERY, run.step_s, product_s(run.device)):
            run.metrics.write("straggler", step=run.state.step, **slow)
        self._waited_s = 0.0


def stragglers(waited_s: float, step_s: float, product: float) -> list[dict[str, Any]]:
    """The processes that slow down the others, each with `rank`, `host` and `why`. Every process calls this with its own values,
    and all get the same result.

    `waited_s`: mean seconds that this process waits for the batch of a step. `step_s`: seconds of a step. `product`: seconds of a
    matrix product that this process computes on its own.
    """
    reports: list[tuple[str, float, float]] = [("", 0.0, 0.0)] * dist.get_world_size()
    dist.all_gather_object(reports, (socket.gethostname(), waited_s, product))
    usual_wait, usual_product = median(r[1] for r in reports), median(r[2] for r in reports)
    found = []
    for rank, (host, wait, seconds) in enumerate(reports):
        if wait > usual_wait + LATE * step_s:
            why = f"its batches take {wait:.3g} s a step, the others' {usual_wait:.3g} s"
            found.append({"rank": rank, "host": host, "why": why})
        if seconds > SLOW * usual_product:
            found.append({"rank": rank, "host": host, "why": f"its products take {seconds / usual_product:.1f} times as long"})
    return found


def product_s(device: torch.device) -> float:
    """The seconds of one matrix product, the shortest of five."""
    size, dtype = (4096, torch.bfloat16) if device.type == "cuda" else (384, torch.float32)
    a = torch.ones(size, size, dtype=dtype, device=device)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


class SDCCheck(Hook):
    """Computes a loss twice every `every` steps (0: never), to detect silent data corruption."""

    def __init__(self, every: int):
        self._every = every

    def after_step(self, run: Run, done: StepOutput) -> None:
        if self._every and run.state.step % self._every == 0:
            assert run.rows is not None
            first = run.rows.on(run.device, slice(0, 1))
            check_arithmetic(lambda: run.loss_of(first), run.state.step)


def check_arithmetic(loss: Callable[[], Tensor | float], step: int) -> None:
    """Compute a loss twice. If the results are not bitwise equal on some process, raises TenfoldError on all, with its name."""
    with torch.no_grad():
        first, second = (torch.as_tensor(loss()) for _ in range(2))
    own = None if torch.equal(first, second) else socket.gethostname()
    found: list[str | None] = [own]
    if dist.is_initialized():
        found = [None] * dist.get_world_size()
        dist.all_gather_object(found, own)
    wrong = ", ".join(f"process {rank} ({host})" for rank, host in enumerate(found) if host is not None)
    if wrong:
        raise TenfoldError(
            f"The loss after step {step} came out differently when it was computed again on {wrong}: remove that machine and "
            "resume from the last checkpoint."
        )
