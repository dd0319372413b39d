"""Let a run sleep between two steps: its process stays alive, and continues from memory at the same step."""

import threading
import time
from collections.abc import Iterator

from torch import Tensor

from tenfold.launch.job import JobStopped
from tenfold.model.parked import Parked
from tenfold.train.hook import Hook
from tenfold.train.run import Run
from tenfold.train.state import StepOutput


class Sleep(Hook):
    """Lets another thread put the run to sleep and wake it up. For runs of one process; it must come after `Checkpoints` in the
    list of hooks.

    A sleeping run has its checkpoint on disk, uses no GPU memory except the CUDA context, and does not compute. If it is stopped
    while it sleeps, it ends at once.
    """

    def __init__(self) -> None:
        self._wanted, self._asleep, self._woken = threading.Event(), threading.Event(), threading.Event()

    def sleep(self) -> None:
        """Put the run to sleep after its current step, and return when it sleeps. Blocks forever if the run ends first."""
        self._asleep.clear()
        self._woken.clear()
        self._wanted.set()
        self._asleep.wait()

    def wake_up(self) -> None:
        """Let the run continue."""
        self._woken.set()

    def after_step(self, run: Run, done: StepOutput) -> None:
        if not self._wanted.is_set() or run.stopped or run.finished:
            return
        run.hooks["Log"].before_sleep(run)
        run.hooks["Checkpoints"].save(run)
        run.timer.write(run.state.step)
        parked, began = Parked(_device_tensors(run)), time.monotonic()
        self._wanted.clear()
        self._asleep.set()
        while not self._woken.wait(0.2):
            run.watchdog.beat()
            if run.stop.requested:
                raise JobStopped(f"The run in {run.directory} was stopped while it slept.")
        woken = time.time()
        parked.bring_back()
        run.hooks["Log"].after_sleep(run, time.monotonic() - began)
        run.timer.begin(run.state.step, woken)


def _device_tensors(run: Run) -> Iterator[Tensor]:
    """Weights, gradients, buffers and optimizer state that are not in host memory."""
    parameters = list(run.model.parameters())
    state = (value for optimizer in run.optimizers for values in optimizer.state.values() for value in values.values())
    everything = [*parameters, *(p.grad for p in parameters if p.grad is not None), *run.model.buffers(), *state]
    return (tensor for tensor in everything if isinstance(tensor, Tensor) and tensor.device.type != "cpu")
