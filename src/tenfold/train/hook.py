"""What happens around the steps of a run: checkpoints, health, metrics, balance, evaluation. One's own stand beside them."""

from typing import Any

from tenfold.train.result import RunResult
from tenfold.train.run import Run
from tenfold.train.state import StepOutput


class Hook:
    """`fit` calls every hook in the order of its list, on every process; a method that is not overridden does nothing.

    An exception in a hook ends the run, which goes on from its last checkpoint when it is started again.
    """

    def start(self, run: Run) -> None:
        """Before the first step of this start, with the state of a checkpoint loaded."""

    def after_step(self, run: Run, done: StepOutput) -> None:
        """After every step; `run.state.step` steps are done."""

    def finish(self, run: Run) -> None:
        """When no more steps are done: the run has finished, or was stopped."""

    def end(self, run: Run, result: RunResult) -> None:
        """After the last evaluation."""

    def close(self) -> None:
        """At the end, also after an error."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint, before `start`."""
