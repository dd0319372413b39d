"""Stopping in time: SIGTERM, SIGUSR1 and the first Ctrl-C become a flag that the loop polls."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    requested: bool = False


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Within it, a signal sets `requested`; a second Ctrl-C interrupts as usual. Outside the main thread it does nothing."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
