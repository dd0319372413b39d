"""Workers that stay in their slots asleep, so that a role comes back warm: what it needs is in memory, and nothing is loaded."""

import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

from tenfold.launch.job import Handle


class Worker(NamedTuple):
    """A process in a slot, the address at which it serves, and, of one that can stay, the pipe of its orders (`hold.stay`)."""

    handle: Handle
    url: str
    orders: Connection | None = None


class Sleepers:
    """Those of all slots together keep `keep_bytes` of memory at most; 0 keeps nothing, so every switch is cold."""

    def __init__(self) -> None:
        self.keep_bytes = 0.0
        self._asleep: dict[tuple[str, str], tuple[Worker, int]] = {}

    def add(self, slot: str, role: str, worker: Worker, seconds: float) -> bool:
        """Let a worker sleep. False where it cannot, not in this time, or where there is no room: then it is to be ended."""
        kept = _fall_asleep(worker, seconds) if self.keep_bytes else None
        if kept is None or kept + sum(kept for _, kept in list(self._asleep.values())) > self.keep_bytes:
            return False
        self._asleep[slot, role] = worker, kept
        return True

    def wake(self, slot: str, role: str, end: float | None) -> Worker | None:
        """Let the role's worker wake up when the slot is free; None where none sleeps there. `end` is as in `hold.hold`."""
        worker, _ = self._asleep.pop((slot, role), (None, 0)) if self.keep_bytes else (None, 0)
        if worker is not None and worker.orders is not None and worker.handle.status() == "running":
            with suppress(OSError):  # it ended
                worker.orders.send(("wake_up", end))
                return worker
        return None

    def leave(self, slot: str) -> list[Worker]:
        """Those of a slot, which are to be ended."""
        return [self._asleep.pop(key)[0] for key in list(self._asleep) if key[0] == slot]


def _fall_asleep(worker: Worker, seconds: float) -> int | None:
    """The bytes that a worker keeps asleep; None where it does not sleep."""
    end, orders = time.monotonic() + seconds, worker.orders
    with suppress(OSError, EOFError):  # it ended
        if orders is not None:
            orders.send(("sleep", None))
            while not orders.poll(0.05):
                if worker.handle.future.done() or time.monotonic() > end:
                    return None
            kept: int | None = orders.recv()
            return kept
    return None
