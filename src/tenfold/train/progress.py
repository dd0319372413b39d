"""The progress of a run on standard error: a progress bar on a terminal, elsewhere a plain line from time to time."""

import sys
import time
from types import TracebackType

from rich.progress import TimeRemainingColumn

from tenfold.spec.terminal import progress
from tenfold.spec.units import duration, si

LINE_EVERY_S = 30.0


class TrainingProgress:
    """Shows loss, tokens/s, MFU, watts and remaining time.

    `enabled` None or True: a progress bar on a terminal, elsewhere a plain line at most every `LINE_EVERY_S` seconds (so that a
    short run prints none). False: nothing.
    """

    def __init__(self, total_steps: int, description: str, enabled: bool | None = None):
        shown = enabled is not False
        self._total_steps, self._description = total_steps, description
        self._bar = progress(TimeRemainingColumn(), field="text", quiet=not shown)
        self._lines = shown and not self._bar.console.is_terminal
        self._task = self._bar.add_task(description, total=total_steps, text="")
        self._began = self._last_line = time.monotonic()
        self._first_step: int | None = None

    def update(self, step: int, loss: float, tokens_per_s: float, mfu: float, watts: float) -> None:
        """Show the state after `step` steps. The remaining time is estimated from the steps since the first call."""
        text = f"loss {loss:.3f}  {si(tokens_per_s, 'tokens/s')}  MFU {mfu:.0%}  {watts:.0f} W"
        now = time.monotonic()
        if self._first_step is None:
            self._first_step, self._began = step, now
            self._bar.reset(self._task, completed=step, text=text)
        self._bar.update(self._task, completed=step, text=text)
        if self._lines and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            line = f"{self._description}: step {step}/{self._total_steps}  {text}"
            if step > self._first_step:
                left_s = (now - self._began) * (self._total_steps - step) / (step - self._first_step)
                line += f"  {duration(left_s)} left"
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
