"""Watches whether roles make progress. They are asked in threads, so that the controller does not wait for an answer."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

EVERY_S = 1.0  # seconds between two questions to a role


class Watch:
    """The last sign of each slot: a value that changes as long as the role works, or None where it gave no answer."""

    def __init__(self, slots: int):
        self._pool = ThreadPoolExecutor(slots)
        self._asked: dict[str, Future[object]] = {}
        self._last: dict[str, tuple[object, float, float]] = {}  # (sign, since when it is the same, when it was last asked for)

    def forget(self, slot: str) -> None:
        """Forget a slot's sign, because another role starts there."""
        self._asked.pop(slot, None)
        self._last.pop(slot, None)

    def silent_s(self, slot: str, sign: Callable[[], object]) -> float:
        """The seconds since the slot's sign last changed, as far as is known."""
        now = time.monotonic()
        before, since, asked = self._last.get(slot, (None, now, -EVERY_S))
        if slot in self._asked and self._asked[slot].done():
            found = self._asked.pop(slot).result()
            if found is not None and found != before:
                before, since = found, now
        if slot not in self._asked and now - asked >= EVERY_S:
            self._asked[slot], asked = self._pool.submit(sign), now
        self._last[slot] = before, since, asked
        return now - since

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
