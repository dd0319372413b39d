"""What a person sees while a run trains: a bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tenfold.spec.units import duration, si

LINE_EVERY_S = 30.0


class TrainingProgress:
    """Loss, tokens/s, MFU, watts and time left. `enabled` None: a bar on a terminal, else a line every half minute."""

    def __init__(self, steps: int, title: str, enabled: bool | None = None):
        console = Console(stderr=True)
        self._steps, self._title = steps, title
        self._lines = enabled is None and not console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=enabled is False or not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=steps, text="")
        self._began = self._last_line = time.monotonic()

    def update(self, step: int, loss: float, tokens_per_s: float, mfu: float, watts: float) -> None:
        text = f"loss {loss:.3f}  {si(tokens_per_s, 'tokens/s')}  MFU {mfu:.0%}  {watts:.0f} W"
        self._bar.update(self._task, completed=step, text=text)
        now = time.monotonic()
        if self._lines and now - self._last_line > LINE_EVERY_S:
            self._last_line = now
            left = (now - self._began) * (self._steps - step) / step
            print(f"{self._title}: step {step}/{self._steps}  {text}  {duration(left)} left", flush=True)

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
