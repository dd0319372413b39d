"""Write the record of a run: its losses, speed and energy every few steps, its evaluations, and its result."""

import time
from dataclasses import asdict
from typing import Any

from tenfold.train.energy import EnergyMeter
from tenfold.train.goodput import read_goodput
from tenfold.train.hook import Hook
from tenfold.train.hooks.balance import LoadBalancing
from tenfold.train.parallel.processes import local_rank
from tenfold.train.progress import TrainingProgress
from tenfold.train.result import RunResult
from tenfold.train.rollback import skipped_batches
from tenfold.train.run import Run
from tenfold.train.state import StepOutput


class Log(Hook):
    """Writes `run.jsonl` every `every` steps, and shows progress unless `quiet`.

    `notes` are added to the first event. `balance` provides the load of the experts.
    """

    def __init__(self, every: int, balance: LoadBalancing, quiet: bool = False, notes: dict[str, Any] | None = None):
        self._every, self._balance, self._quiet, self._notes = every, balance, quiet, notes or {}

    def start(self, run: Run) -> None:
        # One process per machine counts its GPUs and CPU packages; every process counts its own CPU time.
        self._meter = EnergyMeter(whole_machine=local_rank() == 0)
        title = run.directory.name
        self._progress = TrainingProgress(run.steps, title, enabled=False if self._quiet or not run.is_first else None)
        self._progress.__enter__()
        if run.saved is None:
            run.metrics.write("start", **run.facts, **self._notes)
        else:
            left_out = sum(batches for _, batches in skipped_batches(run.directory))
            run.metrics.write("resume", step=run.state.step, batches_left_out=left_out)
        self._energy_before = run.state.energy_j
        self._set_mark(run)

    def after_step(self, run: Run, done: StepOutput) -> None:
        if run.state.step % self._every and not run.finished:
            return
        seconds = time.monotonic() - self._mark_time
        steps = run.state.step - self._mark_step
        watts = self._count_energy(run)
        rate = steps * run.tokens_per_step / seconds
        mfu = (run.state.flops - self._mark_flops) / seconds / run.peak_flops
        loss = done.loss if done.loss is not None else float("nan")
        run.metrics.write(
            "step", step=run.state.step, loss=loss, grad_norm=done.grad_norm, tokens_per_s=rate, mfu=mfu, watts=watts,
            learning_rate=run.optimizers[0].param_groups[0]["lr"], tokens=run.state.step * run.tokens_per_step,
            **self._balance.take_statistics(run), **run.task.progress(run.state.step),
        )  # fmt: skip
        self._progress.update(run.state.step, loss, rate, mfu, watts)
        run.timer.write(run.state.step)
        self._set_mark(run)

    def end(self, run: Run, result: RunResult) -> None:
        run.timer.write(run.state.step, run.finished)
        if run.is_first:
            run.metrics.write("goodput", step=run.state.step, **read_goodput(run.directory / "time.jsonl"))
        if run.finished:
            run.metrics.write("end", **{**asdict(result), "directory": str(run.directory)})
        else:
            run.metrics.write("stopped", step=run.state.step)

    def close(self) -> None:
        self._progress.__exit__(None, None, None)

    def pass_over(self, run: Run) -> None:
        """Exclude the time since the last step from the speed of the next ones."""
        self._set_mark(run)

    def before_sleep(self, run: Run) -> None:
        """Count the energy up to now, because energy used while the run sleeps is not the run's."""
        self._count_energy(run)

    def after_sleep(self, run: Run, seconds: float) -> None:
        """Record the sleep of `seconds`, and resume counting energy and time."""
        run.metrics.write("slept", step=run.state.step, seconds=seconds)
        self._energy_before = run.state.energy_j
        self._meter.start()
        self._set_mark(run)

    def _count_energy(self, run: Run) -> float:
        """Update the run's energy; returns the mean watts since the last call, over all processes."""
        energy = self._meter.read()
        joules, watts = run.dims.total(energy.joules, energy.watts)
        run.state.energy_j, run.energy_source = self._energy_before + joules, energy.source
        return watts

    def _set_mark(self, run: Run) -> None:
        self._mark_time, self._mark_step, self._mark_flops = time.monotonic(), run.state.step, run.state.flops


class Evaluation(Hook):
    """Evaluates the model every `every` steps; with 0, only `fit` does, at the end."""

    def __init__(self, every: int, log: Log):
        self._every, self._log = every, log

    def after_step(self, run: Run, done: StepOutput) -> None:
        if self._every and run.state.step % self._every == 0 and not run.finished:
            run.metrics.write("evaluation", step=run.state.step, **run.evaluate())
            self._log.pass_over(run)
