"""The state of a run while it trains, shared by `fit` and its hooks."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tenfold.spec.model import ModelSpec
from tenfold.spec.threads import watch_others
from tenfold.train.goodput import GoodputTimer
from tenfold.train.memory import peak_memory_bytes
from tenfold.train.metrics import MetricsWriter
from tenfold.train.parallel.dims import ParallelDims
from tenfold.train.result import RunResult
from tenfold.train.signals import Stop
from tenfold.train.state import RunState, StepOutput
from tenfold.train.step import Step
from tenfold.train.task import Batch, Rows, Task
from tenfold.train.watchdog import Watchdog


@dataclass
class Run:
    """A run on this process.

    `directory` is the run's directory, `record` the folder where this process writes its own files. `steps` is the number of steps
    of the whole run. `peak_flops` are the peak FLOP/s of all processes together, and `peak_source` says where they come from.
    `rows_of` gives this process's rows of a step. `busy_share` is the share of the machine's cores that other processes use.
    """

    directory: Path
    record: Path
    task: Task
    spec: ModelSpec
    model: nn.Module
    optimizers: list[Optimizer]
    dims: ParallelDims
    device: torch.device
    steps: int
    batch_size: int
    tokens_per_step: int
    peak_flops: float
    peak_source: str
    train_step: Step
    rows_of: Callable[[int], Rows]
    watchdog: Watchdog
    metrics: MetricsWriter
    timer: GoodputTimer
    stop: Stop
    state: RunState = field(default_factory=RunState)
    saved: dict[str, Any] | None = None  # the `extra` of the checkpoint that the run was resumed from
    facts: dict[str, Any] = field(default_factory=dict)  # the fields of the event "start"
    hooks: dict[str, Any] = field(default_factory=dict)  # by the names of their classes
    stopped: bool = False
    rows: Rows | None = None  # of the last step
    waited_s: float = 0.0  # seconds that the last step waited for its rows
    step_s: float = 0.0  # seconds of the last step
    energy_source: str = ""
    busy_share: Callable[[], float] = field(default_factory=watch_others)

    @property
    def finished(self) -> bool:
        return self.state.step >= self.steps

    @property
    def is_first(self) -> bool:
        """Whether this is the first process, which writes to the run's directory itself."""
        return self.dims.rank == 0

    def one_step(self) -> StepOutput:
        """Take the next step."""
        began = time.perf_counter()
        with self.timer.time("stepping"):
            self.rows = self.rows_of(self.state.step)
            self.waited_s = time.perf_counter() - began
            weight, flops = self.dims.total_of_rows(self.rows.weight(), self.task.flops(self.rows))
            done = self.train_step(self.rows, self.state.step, weight)
        self.step_s = time.perf_counter() - began
        self.state.seconds += self.step_s
        self.state.step += 1
        self.watchdog.beat(self.state.step)
        self.state.flops += flops
        return done

    def read_state(self) -> None:
        """Update `state` from the device, where the step skipper decides on the device which steps count."""
        self.train_step.skipper.read()

    def loss_of(self, batch: Batch) -> float:
        """The summed loss of a batch, for use under `torch.no_grad`. In a pipeline only the last stage has it; others return 0."""
        batch = self.dims.own_positions(batch)
        if self.dims.pipeline is not None:
            return self.dims.pipeline.loss(batch)
        return float(self.dims.loss_of(self.model, self.task, batch).loss)

    def evaluation_rows(self, most: int = 16) -> int:
        """How many rows an evaluation puts through the model together: no more than training does, so that a run which trains
        within its memory also evaluates within it."""
        return min(most, self.train_step.rows_at_once)

    def evaluate(self) -> dict[str, float]:
        """The task's evaluation of the model."""
        with self.timer.time("evaluating"):
            return self.task.evaluate(self)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds in addition to weights and optimizer state."""
        hooks = {name: hook.state_dict() for name, hook in self.hooks.items()}
        return {"state": asdict(self.state), "hooks": hooks, "task": self.task.state_dict()}

    def result(self) -> RunResult:
        """The result of the run so far; a finished run is evaluated."""
        scores = self.evaluate() if self.finished else {}
        state, seen = self.state, self.state.step * self.tokens_per_step
        return RunResult(
            directory=self.directory,
            finished=self.finished,
            step=state.step,
            loss=scores.pop("loss", math.nan),
            bits_per_byte=scores.pop("bits_per_byte", math.nan),
            parameters=self.spec.parameters().matrix_active,
            tokens=seen,
            flops=state.flops,
            seconds=state.seconds,
            tokens_per_s=seen / state.seconds if state.seconds else 0.0,
            mfu=state.flops / state.seconds / self.peak_flops if state.seconds else 0.0,
            energy_kwh=state.energy_j / 3.6e6,
            energy_source=self.energy_source,
            peak_memory_gib=peak_memory_bytes(self.device) / 2**30,
            skipped_steps=state.skipped,
            busy_share=self.busy_share(),
            scores=scores,
        )
