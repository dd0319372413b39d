"""Being a good neighbour: how OpenMP's threads wait, how many a model takes, and what other processes use meanwhile.

PyTorch's threads spin while they wait for one another. Beside another busy process a thread may lose its core while the others
wait for it, and their spinning keeps it from getting one back: two threads on two cores then train a hundred times slower,
not twice.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

# A thread that waits longer than some ten microseconds sleeps; between the operations of a step, alone, few wait longer.
WAITING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
ONE_THREAD_BELOW = 128  # wide: narrower models train as fast on one thread as on more


def set_waiting_policy() -> None:
    """Let waiting threads sleep, in this process and those that it starts. Call it before PyTorch is loaded.

    Variables that the environment sets already are kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in WAITING.items():
            os.environ.setdefault(name, value)


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def recommended_threads(width: int, run: Path | None = None) -> int:
    """Threads to train a model of this width with: as many as the run in `run` began with, or `OMP_NUM_THREADS`, or a choice.

    Sums depend on the number of threads in their last bits. So the choice depends on the width and the cores, never on what
    the machine does at the moment, and a resumed run keeps the number that it began with.
    """
    if run is not None and (begun := _threads_of(run / "run.jsonl")):
        return begun
    if asked := os.environ.get("OMP_NUM_THREADS", "").split(",")[0]:
        return int(asked)
    return 1 if width < ONE_THREAD_BELOW else available_cores()


def _threads_of(log: Path) -> int | None:
    if not log.exists():
        return None
    with log.open() as lines:
        first = lines.readline()
    return json.loads(first).get("threads") if first.endswith("\n") else None


def watch_others() -> Callable[[], float]:
    """Returns a function that says which share of the machine's cores other processes have used since."""
    began, before, own_before = time.monotonic(), _busy_s(), _own_s()

    def share() -> float:
        core_seconds = max(1e-9, (time.monotonic() - began) * (psutil.cpu_count() or 1))
        others = (_busy_s() - before) - (_own_s() - own_before)
        return min(1.0, max(0.0, others / core_seconds))

    return share


def busy_share(seconds: float = 0.5) -> float:
    """The share of the machine's cores that other processes use, over the next `seconds`."""
    share = watch_others()
    time.sleep(seconds)
    return share()


def _busy_s() -> float:
    """Seconds for which the machine's cores were not idle, since it started."""
    times = psutil.cpu_times()
    not_busy = ("idle", "iowait", "guest", "guest_nice")  # a guest's time is in that of its host already
    return sum(seconds for name, seconds in times._asdict().items() if name not in not_busy)


def _own_s() -> float:
    """Seconds of this process on all cores, and of its children that have ended."""
    return sum(psutil.Process().cpu_times()[:4])
