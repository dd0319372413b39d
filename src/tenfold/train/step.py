"""One optimizer step: forward and backward passes in micro-batches, gradient clipping, and the update unless it is skipped."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tenfold.train.config import OptimizerConfig
from tenfold.train.optim.hyperparameters import Hyperparameters
from tenfold.train.optim.optimizer import set_learning_rate
from tenfold.train.optim.schedule import schedule
from tenfold.train.parallel.dims import ALONE, ParallelDims
from tenfold.train.parallel.gradients import add_across_copies, clip_gradient
from tenfold.train.skipper import DeviceStepSkipper, StepSkipper
from tenfold.train.state import StepOutput
from tenfold.train.task import Rows, Task


@dataclass(frozen=True)
class Step:
    """A training step, taken by calling the object.

    `micro_batch` is the number of rows per forward pass. 0 means all rows of the process, or in a pipeline as many as give one
    micro-batch per process. With a DeviceStepSkipper the loss stays on the device, and is read every `read_every` steps.
    """

    task: Task
    model: nn.Module
    optimizers: list[Optimizer]
    skipper: StepSkipper
    h: Hyperparameters
    config: OptimizerConfig
    device: torch.device
    dims: ParallelDims = ALONE
    micro_batch: int = 0
    read_every: int = 1

    def __call__(self, rows: Rows, step: int, weight: float) -> StepOutput:
        """Take step number `step` (from 0) on this process's `rows`; `weight` is the total weight of the rows of all processes."""
        c = self.config
        set_learning_rate(self.optimizers, schedule(c.schedule, step, self.h.steps, c.warmup, c.decay))
        weight = max(1.0, weight)
        total: Tensor | float = self._pipeline_passes(rows, weight) if self.dims.pipeline else self._passes(rows, weight)
        if self._on_device:
            loss: Tensor | float = total / weight
            norm: Tensor | float = nn.utils.clip_grad_norm_(self.model.parameters(), c.max_grad_norm)
        else:
            loss = self.dims.total(float(total))[0] / weight
            norm = clip_gradient(self.model, c.max_grad_norm, self.dims)
        self.skipper.take(self.optimizers, loss, norm)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if self._on_device and (step + 1) % self.read_every and step + 1 < self.h.steps:
            return StepOutput(None, None)
        self.skipper.read()
        return StepOutput(float(loss), float(norm))

    @property
    def rows_at_once(self) -> int:
        """How many rows go through the model, or a stage of it, together."""
        processes = self.dims.pipeline.processes if self.dims.pipeline else 1
        return self.micro_batch or max(1, self.dims.most_rows(self.h.batch_size) // processes)

    @property
    def _on_device(self) -> bool:
        return isinstance(self.skipper, DeviceStepSkipper)

    def _passes(self, rows: Rows, weight: float) -> Tensor | float:
        """Add the gradients of the loss divided by `weight` to the parameters; returns the loss summed over these rows."""
        total: Tensor | float = 0.0
        most, micro = self.dims.most_rows(self.h.batch_size), self.rows_at_once
        for offset in range(0, most, micro):
            batch = rows.on(self.device, slice(offset, min(offset + micro, len(rows)))).padded(min(micro, most - offset))
            if not self.dims.alone:
                add_across_copies(self.model, offset + micro >= most)
            sums = self.dims.loss_of(self.model, self.task, self.dims.own_positions(batch))
            ((sums.loss + sums.extra) / weight).backward()
            total = total + (sums.loss.detach() if self._on_device else sums.loss.item())
        return total

    def _pipeline_passes(self, rows: Rows, weight: float) -> Tensor | float:
        pipeline = self.dims.pipeline
        assert pipeline is not None
        most, micro = self.dims.most_rows(self.h.batch_size), self.rows_at_once
        together = micro * pipeline.processes
        batch = rows.on(self.device, slice(None)).padded(-(-most // together) * together)
        return pipeline.step(self.dims.own_positions(batch), micro, weight)
