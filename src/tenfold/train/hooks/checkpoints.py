"""Save the run at regular intervals, when it is stopped, and at its end."""

import shutil
import time

from tenfold.train import checkpoint
from tenfold.train.config import CheckpointConfig
from tenfold.train.hook import Hook
from tenfold.train.result import RunResult
from tenfold.train.run import Run
from tenfold.train.state import StepOutput


class Checkpoints(Hook):
    """Saves in the background every `config.every_s` seconds. With `keep_model` False, a finished run keeps no checkpoint."""

    def __init__(self, config: CheckpointConfig, keep_model: bool = True):
        self._config, self._keep_model = config, keep_model

    def start(self, run: Run) -> None:
        folder, config = run.directory / "checkpoint", self._config
        self._saver = checkpoint.Saver(folder, config.keep_last, config.upload_to, run.watchdog.beat)
        self._last_save = time.monotonic()

    def after_step(self, run: Run, done: StepOutput) -> None:
        due = time.monotonic() - self._last_save > self._config.every_s
        save_now, run.stopped = run.dims.agree(due, run.stop.requested)
        if save_now:
            self._save(run)
            self._last_save = time.monotonic()

    def finish(self, run: Run) -> None:
        if self._keep_model or not run.finished:
            self.save(run)

    def save(self, run: Run) -> None:
        """Save, and return when the checkpoint is on disk."""
        self._save(run)
        with run.timer.time("saving"):
            self._saver.finish()
        self._last_save = time.monotonic()

    def end(self, run: Run, result: RunResult) -> None:
        self._saver.close()
        if result.finished and not self._keep_model and run.is_first:
            shutil.rmtree(run.directory / "checkpoint", ignore_errors=True)

    def wait(self) -> None:
        """Wait for the save in progress."""
        self._saver.finish()

    def _save(self, run: Run) -> None:
        run.read_state()
        run.timer.write(run.state.step)  # the time up to here is kept if a failure leads back to this checkpoint
        with run.timer.time("saving"):
            self._saver.save(run.state.step, run.model, run.optimizers, run.state_dict())
