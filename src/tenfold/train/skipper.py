"""The step skipper: a step whose loss or gradient is not finite, or whose gradient explodes, does not change the weights."""

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from tenfold.spec.errors import TenfoldError
from tenfold.train.state import RunState

EXPLODING = 30.0  # a gradient this many times the usual norm is skipped
SETTLED = 20  # steps after which the usual norm is known well enough to compare with


class StepSkipper(Protocol):
    """Decides whether a step counts."""

    def take(self, optimizers: list[Optimizer], loss: Tensor | float, norm: Tensor | float) -> None:
        """Step every optimizer or none, by the step's loss and its gradient norm before clipping."""
        ...

    def read(self) -> None:
        """Update the run's state. Raises TenfoldError after too many skipped steps in a row."""
        ...


class HostStepSkipper:
    """Decides on the host. `state` is the run's; `most` skipped steps in a row end the run."""

    def __init__(self, state: RunState, most: int, exploding: float = EXPLODING):
        self.state, self._most, self._exploding = state, most, exploding

    def take(self, optimizers: list[Optimizer], loss: Tensor | float, norm: Tensor | float) -> None:
        state, loss, norm = self.state, float(loss), float(norm)
        exploded = state.step > SETTLED and norm > self._exploding * state.usual_norm
        if math.isfinite(norm) and math.isfinite(loss) and not exploded:
            for optimizer in optimizers:
                optimizer.step()
            state.usual_norm = norm if state.usual_norm == 0 else 0.95 * state.usual_norm + 0.05 * norm
            state.skipped_in_a_row = 0
        else:
            state.skipped += 1
            state.skipped_in_a_row += 1
            stop_after_skips(state, self._most, loss)

    def read(self) -> None:
        pass


class DeviceStepSkipper:
    """Applies the same rule on the device, so that the host does not wait for the loss and the norm.

    Only for optimizers that skip a step by `found_inf`, as PyTorch's fused ones do.
    """

    def __init__(self, state: RunState, most: int, device: torch.device, exploding: float = EXPLODING):
        self.state, self._most, self._exploding = state, most, exploding
        values = (state.step, state.usual_norm, state.skipped, state.skipped_in_a_row)
        self._step, self._usual, self._skipped, self._in_a_row = (
            torch.tensor(float(v), dtype=torch.float64, device=device) for v in values
        )
        self._loss = torch.tensor(math.nan, device=device)

    @torch.no_grad()
    def take(self, optimizers: list[Optimizer], loss: Tensor | float, norm: Tensor | float) -> None:
        self._loss, norm = torch.as_tensor(loss), torch.as_tensor(norm).double()
        exploded = (self._step > SETTLED) & (norm > self._exploding * self._usual)
        bad = ~(self._loss.isfinite() & norm.isfinite()) | exploded
        usual = torch.where(self._usual == 0, norm, 0.95 * self._usual + 0.05 * norm)
        self._usual = torch.where(bad, self._usual, usual)
        self._skipped += bad
        self._in_a_row = torch.where(bad, self._in_a_row + 1, torch.zeros_like(self._in_a_row))
        self._step += 1
        found_inf = bad.float()
        for optimizer in optimizers:
            optimizer.found_inf = found_inf  # type: ignore[attr-defined]
            optimizer.step()

    def read(self) -> None:
        usual, skipped, in_a_row = torch.stack((self._usual, self._skipped, self._in_a_row)).tolist()
        self.state.usual_norm, self.state.skipped, self.state.skipped_in_a_row = usual, int(skipped), int(in_a_row)
        stop_after_skips(self.state, self._most, float(self._loss))


def stop_after_skips(state: RunState, most: int, loss: float) -> None:
    """Raises TenfoldError if the last `most` steps were skipped."""
    if state.skipped_in_a_row >= most:
        raise TenfoldError(
            f"The run stopped at step {state.step}: {state.skipped_in_a_row} steps in a row had a loss or gradient "
            f"that is not finite or exploded (last loss {loss:.4g}); lower learning_rate in [optimizer]."
        )
