"""The state that a run carries from step to step, and the output of a step."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass
class RunState:
    """The state of a run that its checkpoints hold, other than weights, optimizers, hooks and task.

    `seconds` is the time in training steps, `skipped` the number of skipped steps, `usual_norm` the moving average of the gradient
    norm.
    """

    step: int = 0
    seconds: float = 0.0
    energy_j: float = 0.0
    flops: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    usual_norm: float = 0.0


class StepOutput(NamedTuple):
    """The output of a step: the loss per unit of weight (in pretraining, nats per token), and the gradient norm before clipping.

    Both are None if they stay on the device until the next step that is logged.
    """

    loss: float | None
    grad_norm: float | None
