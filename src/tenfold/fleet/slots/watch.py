"""Whether the roles in their slots show signs of life. They are asked beside the controller, which does not wait for them."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

EVERY_S = 1.0


class Watch:
    """Signs of slots: values that change as long as a role works, or None where it gave none."""

    def __init__(self, slots: int):
        self._pool = ThreadPoolExecutor(slots)
        self._asked: dict[str, Future[object]] = {}
        self._last: dict[str, tuple[object, float, float]] = {}  # a sign, since when, and when it was asked for

    def forget(self, slot: str) -> None:
        """Another role comes there."""
        self._asked.pop(slot, None)
        self._last.pop(slot, None)

    def silent_s(self, slot: str, sign: Callable[[], object]) -> float:
        """Seconds in which nothing new was seen, as far as is known by now."""
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
