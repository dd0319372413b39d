"""The lock by which a worker holds its slot. The kernel releases it when the process ends, so a slot never has two workers.

A worker that stays in memory after its lease (`stay`) sleeps without the lock, and takes it again before it wakes up. A borrower
kills itself at its deadline, even if nobody tells it to. Where it cannot, because it is stopped (SIGSTOP), the worker that waits
for the slot kills it. That one also kills an owner's worker whose controller is gone, if it has not left after `ORPHAN_S` seconds.
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

SURE_S = 2.0  # after so long without a change, the record in the lock file is that of the present holder
ORPHAN_S = 60.0  # the time that a worker whose controller is gone has to save and leave


def hold(lock: Path, end: float | None, work: Callable[..., Any], *arguments: Any) -> Any:
    """Call `work` while holding the slot, until `end` at the latest, a time of the monotonic clock at which the process is killed.

    Returns what `work` returns, or None where the slot was free only after `end`.
    """
    with lock.open("a+") as stream:
        return work(*arguments) if _Slot(stream).take(end) else None


class Sleeper(Protocol):
    """Work that another thread can put to sleep and wake up. Both methods raise OSError or TenfoldError where that fails."""

    def sleep(self) -> None:
        """Return when the work has paused, its state is on disk, and memory that can be filled again is freed."""
        ...

    def wake_up(self) -> None:
        """Continue the work."""
        ...


def stay(lock: Path, end: float | None, orders: Connection, sleeper: Sleeper, work: Callable[..., Any], *arguments: Any) -> Any:
    """Like `hold`, but the worker sleeps and wakes up at the controller's orders, and holds the slot only while it is awake.

    Orders are ("wake_up", end) and ("sleep", None). A sleep order is answered with the bytes of memory that the worker keeps, or
    with None where it cannot sleep. A worker that cannot wake up kills itself.
    """
    with lock.open("a+") as stream:
        slot = _Slot(stream)
        if not slot.take(end):
            return None
        threading.Thread(target=_obey, args=(slot, orders, sleeper), daemon=True).start()
        return work(*arguments)


def _obey(slot: "_Slot", orders: Connection, sleeper: Sleeper) -> None:
    with suppress(EOFError, OSError):  # the controller is gone, and this process ends soon
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
    """Resident memory. Shared memory is divided among the processes that share it, where the system reports that (PSS)."""
    with suppress(psutil.NoSuchProcess):
        memory = process.memory_full_info()
        return int(getattr(memory, "pss", memory.rss))
    return 0


class _Slot:
    """A slot's lock file, as this process locks and unlocks it."""

    def __init__(self, stream: TextIO):
        self._stream, self._last = stream, threading.Timer(0.0, int)

    def take(self, end: float | None) -> bool:
        """Wait for the slot; at `end` this process group is killed. False where `end` has passed already."""
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
    """Wait for the lock, killing a holder that has no right to it any more; then record this process as the holder."""
    since, seen, began = time.monotonic(), "", time.monotonic()
    while not _locked(stream):
        stream.seek(0)
        now, record = time.monotonic(), stream.read()
        if record != seen:
            seen, since = record, now
        elif now - since > SURE_S and (group := _expired(record, now - began)):
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


def _expired(record: str, waited_s: float) -> int | None:
    """The process group of a holder whose deadline has passed, or whose controller is gone and that had the time to leave."""
    try:
        holder = json.loads(record)
    except ValueError:
        return None
    orphan = waited_s > ORPHAN_S and holder["parent"] is not None and not psutil.pid_exists(holder["parent"])
    over = holder["end"] is not None and time.monotonic() > holder["end"] + SURE_S
    return int(holder["group"]) if orphan or over else None
