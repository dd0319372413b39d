"""Hooks: what happens around the steps of a run, such as checkpoints, metrics and evaluation. `fit` also takes your own hooks."""

from typing import Any

from tenfold.train.result import RunResult
from tenfold.train.run import Run
from tenfold.train.state import StepOutput


class Hook:
    """Base class of hooks. `fit` calls them in the order of its list, on every process; by default a method does nothing.

    An exception in a hook ends the run; when started again, it resumes from its last checkpoint.
    """

    def start(self, run: Run) -> None:
        """Called before the first step of this start, after the checkpoint, if any, is loaded."""

    def after_step(self, run: Run, done: StepOutput) -> None:
        """Called after every step; `run.state.step` is the number of completed steps."""

    def finish(self, run: Run) -> None:
        """Called after the last step of this start, when the run has finished or was stopped."""

    def end(self, run: Run, result: RunResult) -> None:
        """Called after the final evaluation, with its result."""

    def close(self) -> None:
        """Called at the very end, also after an error."""

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs, as JSON values. It is stored under the name of the hook's class."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint; called before `start`."""
