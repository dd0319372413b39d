"""The fleet's clock: seconds since the epoch that pass evenly, whatever is done to the clock on the wall.

It is set by the wall once and goes on with the machine's monotonic clock, over starts of the controller too. A new boot sets it
again: no worker outlives that.
"""

import json
import time
from pathlib import Path

from tenfold.spec.files import write_json

BOOT = Path("/proc/sys/kernel/random/boot_id")  # where there is none, each start of a controller sets its clock


class Clock:
    """Calling it gives the time. `file` keeps how it was set."""

    def __init__(self, file: Path, *, keep: bool = True):
        boot = BOOT.read_text().strip() if BOOT.exists() else ""
        try:
            kept = json.loads(file.read_text())
        except (OSError, ValueError):
            kept = {}
        if boot and kept.get("boot") == boot:
            self._offset = float(kept["offset"])
            return
        self._offset = time.time() - time.monotonic()
        if keep:
            write_json(file, {"boot": boot, "offset": self._offset})

    def __call__(self) -> float:
        return self._offset + time.monotonic()

    def ahead_s(self) -> float:
        """How far it is ahead of the wall, which jumped back by so much; what is less than a second is 0."""
        ahead = self() - time.time()
        return ahead if abs(ahead) >= 1 else 0.0
