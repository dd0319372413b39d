"""A worker's hold on its slot: a lock of the kernel's, which ends with its process, so that a slot never has two.

A borrower ends itself at its deadline, though nobody tells it to. One that cannot, because it is stopped, is ended by the worker
that waits for the slot; so is an owner's worker whose controller is gone, if it has not left by then.
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
from pathlib import Path
from typing import Any, TextIO

import psutil

SURE_S = 2.0  # a record that stands so long while the slot is held is the holder's
ORPHAN_S = 60.0  # in which a worker whose controller is gone saves and leaves


def hold(lock: Path, end: float | None, work: Callable[..., Any], *arguments: Any) -> Any:
    """Work while holding the slot, until `end` at most: a time of this machine's monotonic clock, which no one sets."""
    with lock.open("a+") as stream:
        _take(stream, end)
        if end is not None:
            last = threading.Timer(end - time.monotonic(), os.killpg, (0, signal.SIGKILL))
            last.daemon = True
            last.start()
            if time.monotonic() >= end:
                return None
        return work(*arguments)


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
