"""What a run carries from step to step, and what a step comes to."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass
class RunState:
    """What, beside weights, optimizers and hooks, a run carries from step to step and through its checkpoints."""

    step: int = 0
    seconds: float = 0.0
    energy_j: float = 0.0
    flops: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    usual_norm: float = 0.0


class StepOutput(NamedTuple):
    """What a step came to: mean loss in nats per unit of weight, and the norm of the gradient before it was clipped.

    Both are None where they stay on the device until the next step that is logged.
    """

    loss: float | None
    grad_norm: float | None
