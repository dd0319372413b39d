"""A worker's hold on its slot: a lock of the kernel's, which ends with its process, so that a slot never has two.

A worker that stays when its lease is over (`stay`) sleeps without the lock, and takes it before it wakes up. A borrower ends
itself at its deadline, though nobody tells it to. One that cannot, because it is stopped, is ended by the worker that waits for the
slot; so is an owner's worker whose controller is gone, if it has not left by then.
"""

import fcntl
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, TextIO

import psutil

from tenfold.spec.errors import TenfoldError

SURE_S = 2.0  # a record that stands so long while the slot is held is the holder's
ORPHAN_S = 60.0  # in which a worker whose controller is gone saves and leaves


def hold(lock: Path, end: float | None, work: Callable[..., Any], *arguments: Any) -> Any:
    """Work while holding the slot, until `end` at most: a time of this machine's monotonic clock, which no one sets."""
    with lock.open("a+") as stream:
        return work(*arguments) if _Slot(stream).take(end) else None


class Sleeper(Protocol):
    """Work that another thread can put to sleep and wake up. Both raise OSError or TenfoldError where that cannot be."""

    def sleep(self) -> None:
        """Return when nothing is computed, what must not be lost is on disk, and what can be had again is freed."""
        ...

    def wake_up(self) -> None:
        """Go on."""
        ...


def stay(lock: Path, end: float | None, orders: Connection, sleeper: Sleeper, work: Callable[..., Any], *arguments: Any) -> Any:
    """Work as by `hold`; but sleep and wake up as the controller orders, and hold the slot only while awake.

    `orders` are ("wake_up", end), and ("sleep", None), which is answered by the bytes of memory that are kept, or by None where it
    cannot sleep. One that cannot wake up ends.
    """
    with lock.open("a+") as stream:
        slot = _Slot(stream)
        if not slot.take(end):
            return None
        threading.Thread(target=_obey, args=(slot, orders, sleeper), daemon=True).start()
        return work(*arguments)


def _obey(slot: "_Slot", orders: Connection, sleeper: Sleeper) -> None:
    with suppress(EOFError, OSError):  # the controller is gone, and so is this process soon
        while True:
            order, end = orders.recv()
            if order == "sleep":
                orders.send(_fall_asleep(slot, sleeper))
                continue
            slot.take(end)
            try:
                sleeper.wake_up()
            except (OSError, TenfoldError):
                os.killpg(0, signal.SIGKILL)


def _fall_asleep(slot: "_Slot", sleeper: Sleeper) -> int | None:
    try:
        sleeper.sleep()
    except (OSError, TenfoldError):
        return None
    slot.leave()
    this = psutil.Process()
    return sum(_memory_bytes(process) for process in [this, *this.children(recursive=True)])


def _memory_bytes(process: psutil.Process) -> int:
    """Resident memory; what is shared with other processes is divided among them where the system says it."""
    with suppress(psutil.NoSuchProcess):
        memory = process.memory_full_info()
        return int(getattr(memory, "pss", memory.rss))
    return 0


class _Slot:
    """The lock of a slot in its file, as this process takes and leaves it."""

    def __init__(self, stream: TextIO):
        self._stream, self._last = stream, threading.Timer(0.0, int)

    def take(self, end: float | None) -> bool:
        """Wait for the slot; this process is ended at `end`. False where that is over."""
        _take(self._stream, end)
        if end is None:
            return True
        self._last = threading.Timer(end - time.monotonic(), os.killpg, (0, signal.SIGKILL))
        self._last.daemon = True
        self._last.start()
        return time.monotonic() < end

    def leave(self) -> None:
        self._last.cancel()
        self._stream.truncate(0)
        fcntl.flock(self._stream, fcntl.LOCK_UN)


def _take(stream: TextIO, end: float | None) -> None:
    """Wait for the slot of a lock's file, and end its holder where that may hold it no longer; then write down who has it."""
    since, seen, began = time.monotonic(), "", time.monotonic()
    while not _locked(stream):
        stream.seek(0)
        now, record = time.monotonic(), stream.read()
        if record != seen:
            seen, since = record, now
        elif now - since > SURE_S and (group := _outlawed(record, now - began)):
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        time.sleep(0.05)
    stream.truncate(0)
    parent = multiprocessing.parent_process()
    json.dump({"group": os.getpgrp(), "end": end, "parent": parent.pid if parent else None}, stream)
    stream.flush()


def _locked(stream: TextIO) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _outlawed(record: str, waited_s: float) -> int | None:
    """The process group of a holder whose deadline is over, or whose controller is gone and that had the time to leave."""
    try:
        holder = json.loads(record)
    except ValueError:
        return None
    orphan = waited_s > ORPHAN_S and holder["parent"] is not None and not psutil.pid_exists(holder["parent"])
    over = holder["end"] is not None and time.monotonic() > holder["end"] + SURE_S
    return int(holder["group"]) if orphan or over else None
