"""The fleet's clock: seconds since the epoch that advance steadily, even where somebody sets the system clock.

It is set from the system clock once and then follows the machine's monotonic clock, also across restarts of the controller. A
reboot sets it again: no worker survives a reboot.
"""

import json
import time
from pathlib import Path

from tenfold.spec.files import write_json

BOOT = Path("/proc/sys/kernel/random/boot_id")  # missing outside Linux: there, each start of a controller sets the clock again


class Clock:
    """A call returns the time in seconds. `file` stores the offset to the monotonic clock; with `keep=False` it is not written."""

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
        """Seconds by which this clock is ahead of the system clock, which was set back by as much. Less than one second counts as
        0."""
        ahead = self() - time.time()
        return ahead if abs(ahead) >= 1 else 0.0
