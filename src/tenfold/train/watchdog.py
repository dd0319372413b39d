"""A watchdog: a process whose loop stands still says so, shows where, and ends, so that its elastic agent starts all anew.

One process that hangs holds up all others in their next sum. Each then ends by itself, and what each prints tells them
apart: those in a collective wait, the one that is elsewhere is the cause.
"""

import faulthandler
import os
import sys
import threading
import time
from typing import Self

EXIT_STATUS = 75  # of sysexits: a failure for now, try again


class Watchdog:
    """Ends the process when `beat` was not called for `seconds`; use it as a context around the loop.

    Of several processes each is watched on after an error: it can hang on its way out, in a message to one that is gone.
    """

    def __init__(self, seconds: float):
        self._seconds, self._rank = seconds, os.environ.get("RANK", "0")
        self._to_the_end = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._step, self._last = 0, time.monotonic()
        self._over = threading.Event()

    def beat(self, step: int | None = None) -> None:
        """Say that the run is alive, with `step` steps done if that has changed."""
        self._step, self._last = self._step if step is None else step, time.monotonic()

    def end(self) -> None:
        """Watch no more: what comes now may take its time."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._last > self._seconds:
                print(
                    f"tenfold: process {self._rank} has done nothing for {self._seconds:g} s after step {self._step}; it ends, "
                    "to be started again from the last checkpoint. It stood here:",
                    file=sys.stderr,
                )
                faulthandler.dump_traceback(sys.__stderr__ or sys.stderr)
                os._exit(EXIT_STATUS)

    def __enter__(self) -> Self:
        self._last = time.monotonic()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if error is not None:
            error.add_note(f"after step {self._step}")
        if kind is None or not self._to_the_end:
            self.end()
