"""Threads on a shared machine: how OpenMP's threads wait, how many a model uses, and how busy other processes keep the machine.

By default PyTorch's threads spin while they wait for one another. Beside another busy process a thread may lose its core while
the others wait for it, and their spinning keeps it from getting one back: two threads on two cores then train a hundred times
slower instead of twice.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

# A thread sleeps after waiting for some ten microseconds. On an idle machine few waits within a step are longer.
WAITING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
ONE_THREAD_BELOW = 128  # narrower models train as fast on one thread as on more


def set_waiting_policy() -> None:
    """Let waiting OpenMP threads sleep, in this process and in those that it starts. Call it before PyTorch is imported.

    Environment variables that are set already are kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in WAITING.items():
            os.environ.setdefault(name, value)


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def recommended_threads(width: int, run: Path | None = None) -> int:
    """The number of threads to train a model of `width` with: that which the run in the folder `run` began with, or else
    `OMP_NUM_THREADS`, or else 1 for a narrow model and all cores for others.

    The last bits of sums depend on the number of threads. So it never depends on how busy the machine is, and a resumed run keeps
    the number that it began with.
    """
    if run is not None and (begun := _threads_of(run / "run.jsonl")):
        return begun
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdecimal() and int(asked):  # OpenMP ignores other values too
        return int(asked)
    return 1 if width < ONE_THREAD_BELOW else available_cores()


def _threads_of(log: Path) -> int | None:
    if not log.exists():
        return None
    with log.open() as lines:
        first = lines.readline()
    return json.loads(first).get("threads") if first.endswith("\n") else None


def watch_others() -> Callable[[], float]:
    """Returns a function that returns the share (0 to 1) of the machine's cores that other processes have used since."""
    began, before, own_before = time.monotonic(), _busy_s(), _own_s()

    def share() -> float:
        core_seconds = max(1e-9, (time.monotonic() - began) * (psutil.cpu_count() or 1))
        others = (_busy_s() - before) - (_own_s() - own_before)
        return min(1.0, max(0.0, others / core_seconds))

    return share


def busy_share(seconds: float = 0.5) -> float:
    """Wait `seconds`, and return the share (0 to 1) of the machine's cores that other processes used meanwhile."""
    share = watch_others()
    time.sleep(seconds)
    return share()


def _busy_s() -> float:
    """Core-seconds for which the machine was not idle since it started."""
    times = psutil.cpu_times()
    not_busy = ("idle", "iowait", "guest", "guest_nice")  # the time of guests is also counted in `user` and `nice`
    return sum(seconds for name, seconds in times._asdict().items() if name not in not_busy)


def _own_s() -> float:
    """Core-seconds of this process and of its children that have ended."""
    return sum(psutil.Process().cpu_times()[:4])
