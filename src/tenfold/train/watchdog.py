"""A watchdog: a process whose training loop hangs prints where it is and exits, so that its elastic agent restarts the run.

One process that hangs makes all others wait in their next collective. Then every process exits, and the printed stacks show the
cause: processes in a collective are waiting, the one that is elsewhere is hanging.
"""

import faulthandler
import os
import sys
import threading
import time
from typing import Self

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: a temporary failure, try again


class Watchdog:
    """Ends the process if `beat` is not called for `seconds`; use it as a context around the training loop.

    With several processes, it keeps watching after an error, because a process can hang while it exits, in a message to one that
    is gone.
    """

    def __init__(self, seconds: float):
        self._seconds, self._rank = seconds, os.environ.get("RANK", "0")
        self._to_the_end = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._step, self._last = 0, time.monotonic()
        self._over = threading.Event()

    def beat(self, step: int | None = None) -> None:
        """Report progress. `step` is the number of completed steps, if it has changed."""
        self._step, self._last = self._step if step is None else step, time.monotonic()

    def end(self) -> None:
        """Stop watching, because what follows may take long."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._last > self._seconds:
                print(
                    f"tenfold: process {self._rank} has done nothing for {self._seconds:g} s after step {self._step}; it exits, "
                    "to be restarted from the last checkpoint. It was here:",
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
