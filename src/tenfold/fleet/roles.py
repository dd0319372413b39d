"""What a slot of this machine can do: train a run, or serve chat, in a process that holds the slot by a lock of the kernel's.

So a slot never has two roles, even where a controller was killed: the next process waits until the one before is gone. A process
whose controller is gone leaves, and a borrower ends at its deadline though nobody tells it to.
"""

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.launch.job import Job, Resources
from tenfold.serve.api.server import serve
from tenfold.serve.options import EngineOptions, ServerOptions
from tenfold.serve.start import answers
from tenfold.spec.files import read_lines
from tenfold.train.config import RunConfig
from tenfold.train.goodput import read_goodput
from tenfold.train.jobs import train_process
from tenfold.train.result import read_result


def hold(lock: Path, until: float | None, work: Callable[..., Any], *arguments: Any) -> Any:
    """Work while holding the slot, until `until` at most."""
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if until is not None:
            end = threading.Timer(until - time.time(), os.killpg, (0, signal.SIGKILL))
            end.daemon = True
            end.start()
        return work(*arguments)


def _job(name: str, arguments: tuple[Any, ...], leave_s: float) -> Job:
    return Job(name, function=hold, arguments=arguments, resources=Resources(cores=1), grace_s=round(leave_s))


@dataclass(frozen=True)
class Training:
    """A run in `directory`, with its data in `home`."""

    config: RunConfig
    directory: Path
    home: Path

    @property
    def finished(self) -> bool:
        return read_result(self.directory) is not None

    def job(self, lock: Path, url: str, until: float | None, leave_s: float) -> Job:
        """Its process in the slot of `lock`, which has `leave_s` to save and leave."""
        arguments = lock, until, train_process, self.config, self.directory, self.home, True
        return _job(f"Training in {lock.stem}", arguments, leave_s)

    def is_ready(self, url: str, since: float) -> bool:
        """Whether a process that was started at `since` came to its first step."""
        return any("began" in row and row["time"] >= since for row in read_lines(self.directory / "time.jsonl"))

    def redone_s(self) -> float:
        """Seconds of steps that were lost and done again."""
        return read_goodput(self.directory / "time.jsonl").get("redone_s", 0.0)


@dataclass(frozen=True)
class Chat:
    """What `tenfold serve` does with one model, on one thread and an answer at a time."""

    model: Path
    finished = False

    def job(self, lock: Path, url: str, until: float | None, leave_s: float) -> Job:
        """Its process in the slot of `lock`, which has `leave_s` to finish its answers; it listens at `url`."""
        options = ServerOptions(port=int(url.rpartition(":")[2]), drain_seconds=leave_s)
        engine = EngineOptions(self.model, max_num_seqs=1, kv_cache_gib=0.1, threads=1, speculate=False)
        arguments = lock, until, serve, {"chat": engine}, options
        return _job(f"Chat in {lock.stem}", arguments, leave_s)

    def is_ready(self, url: str, since: float) -> bool:
        """Whether it answers."""
        return answers(url)

    def redone_s(self) -> float:
        return 0.0


Role = Training | Chat
