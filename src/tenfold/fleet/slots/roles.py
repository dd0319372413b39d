"""The roles of a slot on this machine: train a run, or serve a model, in a process that holds the slot's lock (`hold.py`).

A role knows how its process is started and whether it is ready; `sign` returns a value that changes as long as it works. `end` is
the deadline of a borrower, a time of the monotonic clock.
"""

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tenfold.fleet.slots.hold import Sleeper, hold, stay
from tenfold.launch.job import Job, Resources
from tenfold.serve.api.server import serve
from tenfold.serve.options import EngineOptions, ServerOptions
from tenfold.serve.start import answers
from tenfold.spec.files import make_folder, read_lines
from tenfold.train.config import RunConfig
from tenfold.train.goodput import read_goodput
from tenfold.train.hooks.sleep import Sleep
from tenfold.train.jobs import train_process
from tenfold.train.result import read_result

# The functions that workers call are defined here, so that workers are forked from a process that has imported PyTorch.


def in_slot(lock: Path, end: float | None, orders: Connection | None, sleeper: Sleeper, work: Any, *arguments: Any) -> Any:
    """Call `work` while holding the slot; with `orders` the process stays, asleep, when its lease is over."""
    if orders is None:
        return hold(lock, end, work, *arguments)
    return stay(lock, end, orders, sleeper, work, *arguments)


def train_in_slot(
    lock: Path, end: float | None, orders: Connection | None, config: RunConfig, directory: Path, home: Path
) -> Any:  # fmt: skip
    """Train once no other process of the run is left. A sleeping process of it does not hold the slot's lock, but the run's."""
    hook = Sleep()
    training = lock, end, orders, hook, train_process, config, directory, home, True, [hook]
    return hold(make_folder(directory) / ".worker.lock", None, in_slot, *training)


@dataclass(frozen=True)
class ServerSleep:
    """A `Sleeper` for the server at `url`, by the endpoints of vLLM's sleep mode."""

    url: str

    def sleep(self) -> None:
        self._post("sleep")

    def wake_up(self) -> None:
        self._post("wake_up")

    def _post(self, path: str) -> None:
        urlopen(Request(f"{self.url}/{path}", method="POST")).close()


def _job(name: str, function: Any, arguments: tuple[Any, ...], leave_s: float) -> Job:
    return Job(name, function=function, arguments=arguments, resources=Resources(cores=1), grace_s=round(leave_s))


@dataclass(frozen=True)
class Training:
    """A training run in `directory`, with its data in `home`."""

    config: RunConfig
    directory: Path
    home: Path

    @property
    def finished(self) -> bool:
        return read_result(self.directory) is not None

    def job(self, lock: Path, url: str, end: float | None, leave_s: float, orders: Connection | None = None) -> Job:
        """The job that trains in the slot of `lock`; it has `leave_s` seconds to save and leave."""
        arguments = lock, end, orders, self.config, self.directory, self.home
        return _job(f"train in {lock.stem}", train_in_slot, arguments, leave_s)

    def starts(self) -> int:
        """How often a process reached its first step after a start or a wake-up."""
        return sum("began" in row for row in read_lines(self.directory / "time.jsonl"))

    def is_ready(self, url: str, starts: int) -> bool:
        """Whether a process reached its first step since `starts` was read."""
        return self.starts() > starts

    def sign(self, url: str) -> object:
        """The sizes of the files to which it writes its steps."""
        return [file.stat().st_size for name in ("run", "time") if (file := self.directory / f"{name}.jsonl").exists()]

    def redone_s(self) -> float:
        """Seconds of steps that were lost and repeated."""
        return read_goodput(self.directory / "time.jsonl").get("redone_s", 0.0)


@dataclass(frozen=True)
class Serving:
    """A server as of `tenfold serve`, with one model, one thread and one answer at a time. `name` is the role's and the model's."""

    name: str
    model: Path
    device: str = "cpu"
    finished = False

    def job(self, lock: Path, url: str, end: float | None, leave_s: float, orders: Connection | None = None) -> Job:
        """The job that serves in the slot of `lock` at `url`; it has `leave_s` seconds to finish its answers."""
        options = ServerOptions(port=int(url.rpartition(":")[2]), drain_seconds=leave_s, access_log="none")
        engine = EngineOptions(self.model, max_num_seqs=1, kv_cache_gib=0.1, threads=1, speculate=False, device=self.device)
        arguments = lock, end, orders, ServerSleep(url), serve, {self.name: engine}, options
        return _job(f"{self.name} in {lock.stem}", in_slot, arguments, leave_s)

    def starts(self) -> int:
        return 0

    def is_ready(self, url: str, starts: int) -> bool:
        """Whether it answers and is awake."""
        return answers(url)

    def sign(self, url: str) -> object:
        """The present time where it answers, else None."""
        return time.monotonic() if answers(url) else None

    def redone_s(self) -> float:
        return 0.0


Role = Training | Serving
