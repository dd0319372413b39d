"""Workers that stay asleep in their slots, so that a role returns warm: its data are in memory and need not be loaded."""

import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

from tenfold.launch.job import Handle


class Worker(NamedTuple):
    """A process in a slot, the address at which it serves, and the pipe for its orders where it can sleep (`hold.stay`)."""

    handle: Handle
    url: str
    orders: Connection | None = None


class Sleepers:
    """The sleeping workers of all slots. Together they keep at most `keep_bytes` of memory; with 0 every switch is cold."""

    def __init__(self) -> None:
        self.keep_bytes = 0.0
        self._asleep: dict[tuple[str, str], tuple[Worker, int]] = {}

    def add(self, slot: str, role: str, worker: Worker, seconds: float) -> bool:
        """Put a worker to sleep. False where it cannot sleep within `seconds`, or keeps too much memory: the caller must end it."""
        kept = _fall_asleep(worker, seconds) if self.keep_bytes else None
        if kept is None or kept + sum(kept for _, kept in list(self._asleep.values())) > self.keep_bytes:
            return False
        self._asleep[slot, role] = worker, kept
        return True

    def wake(self, slot: str, role: str, end: float | None) -> Worker | None:
        """Order the role's worker to wake up once the slot is free; None where no worker of the role sleeps there. `end` is as in
        `hold`."""
        worker, _ = self._asleep.pop((slot, role), (None, 0)) if self.keep_bytes else (None, 0)
        if worker is not None and worker.orders is not None and worker.handle.status() == "running":
            with suppress(OSError):  # the worker ended meanwhile
                worker.orders.send(("wake_up", end))
                return worker
        return None

    def leave(self, slot: str) -> list[Worker]:
        """Remove and return the sleeping workers of a slot, which the caller must end."""
        return [self._asleep.pop(key)[0] for key in list(self._asleep) if key[0] == slot]


def _fall_asleep(worker: Worker, seconds: float) -> int | None:
    """The bytes of memory that a worker keeps while it sleeps; None where it did not fall asleep in time."""
    end, orders = time.monotonic() + seconds, worker.orders
    with suppress(OSError, EOFError):  # the worker ended meanwhile
        if orders is not None:
            orders.send(("sleep", None))
            while not orders.poll(0.05):
                if worker.handle.future.done() or time.monotonic() > end:
                    return None
            kept: int | None = orders.recv()
            return kept
    return None
