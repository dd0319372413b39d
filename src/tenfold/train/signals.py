"""Graceful stop: SIGTERM, SIGHUP, SIGUSR1 and the first Ctrl-C set a flag that the training loop polls."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


@dataclass
class Stop:
    """Whether a stop was requested, and `by` which signal (its name, such as SIGTERM)."""

    requested: bool = False
    by: str = ""


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Within the context, a signal sets `requested`, and a second Ctrl-C raises KeyboardInterrupt; then old handlers are restored.

    Python delivers signals to the main thread only: in another thread no handler is installed and the flag is never set.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    interrupted = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if number == signal.SIGINT and interrupted:
            raise KeyboardInterrupt
        interrupted = interrupted or number == signal.SIGINT
        stop.requested, stop.by = True, stop.by or signal.Signals(number).name

    before = {number: signal.getsignal(number) for number in SIGNALS}
    if before.get(signal.SIGHUP) == signal.SIG_IGN:  # set by nohup: respect it
        del before[signal.SIGHUP]
    try:
        for number in before:
            signal.signal(number, handle)
        yield stop
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not installed from Python, which cannot restore it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
