"""Jobs, and the one protocol by which anything starts them: this machine, Ray, Slurm, Kubernetes, or a plugin's own.

Launchers are entry points of the group `tenfold.launchers`. A launcher is a frozen dataclass whose fields are its options; it
takes a job, or refuses it with one sentence (`TenfoldError`).
"""

import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from tenfold.spec.errors import TenfoldError
from tenfold.spec.plugins import load

Status = Literal["waiting", "running", "finished", "failed", "stopped"]


class JobStopped(TenfoldError):
    """The job was asked to stop before its end."""


@dataclass(frozen=True)
class Resources:
    """What a job needs; all but the nodes are those of one node, and 0 asks for nothing in particular.

    A job that can go on when nodes are lost says with how few in `least_nodes`.
    """

    nodes: int = 1
    least_nodes: int | None = None
    processes: int = 1
    cores: int = 0
    gpus: int = 0
    memory_bytes: int = 0

    @property
    def threads(self) -> int:
        """Threads of each process; 0 leaves the choice to the process."""
        return max(1, self.cores // self.processes) if self.cores else 0

    def shrinks_to(self, other: "Resources") -> bool:
        """Whether `other` has fewer nodes, but as many as the job goes on with, and is the same otherwise."""
        return (self.least_nodes or self.nodes) <= other.nodes < self.nodes and replace(self, nodes=other.nodes) == other


@dataclass(frozen=True)
class Job:
    """Work to start: a command line, or a function with its arguments, all of which can be pickled.

    A first word `python` stands for the interpreter of wherever the job runs. `files` are those that the command names by
    these very paths; a cluster that does not share this machine's disks gets copies. The processes of a job on several of
    them meet as `torchrun`'s do, and start again together, up to `restarts` times, when one is lost. After SIGTERM, or ahead
    of the time limit, a job has `grace_s` seconds to save. `directory` is the job's own: its failures are noted there, and the
    same failure at the same step ends it the `same_failures`th time. `environment` is added to what the processes of a
    command find.
    """

    name: str
    command: tuple[str, ...] = ()
    function: Callable[..., Any] | None = None
    arguments: tuple[Any, ...] = ()
    resources: Resources = Resources()
    restarts: int = 0
    same_failures: int = 2
    time_limit_s: int | None = None
    grace_s: int = 180
    files: tuple[Path, ...] = ()
    directory: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        needs = self.resources
        if bool(self.command) == (self.function is not None):
            raise TenfoldError(f"The job {self.name!r} needs a command or a function, and not both.")
        if self.elastic and self.function and self.directory is None:
            raise TenfoldError(f"The job {self.name!r} of several processes needs a directory for what it notes of failures.")
        asked = {
            "nodes": needs.nodes, "least_nodes": needs.least_nodes, "processes": needs.processes, "grace_s": self.grace_s,
            "same_failures": self.same_failures,
        }  # fmt: skip
        for name, value in asked.items():
            if value is not None and value < 1:
                raise TenfoldError(f"A job needs at least 1 as {name}, not {value}.")
        if min(needs.cores, needs.gpus, needs.memory_bytes) < 0:
            raise TenfoldError(f"The job {self.name!r} cannot need less than nothing: {needs}.")
        if needs.least_nodes is not None and needs.least_nodes > needs.nodes:
            raise TenfoldError(f"A job on {needs.nodes} nodes cannot need {needs.least_nodes} at least.")
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise TenfoldError(f"{name!r} is no name of an environment variable: write NAME=VALUE, such as NCCL_DEBUG=INFO.")

    @property
    def elastic(self) -> bool:
        """Whether its processes run under PyTorch's elastic agent."""
        return self.restarts > 0 or self.resources.nodes * self.resources.processes > 1


@dataclass
class Handle:
    """A submitted job. `future` is there where the job runs under this process, and ends with its result."""

    job: Job
    id: str
    said: str = ""  # what the system answered
    future: Future[Any] = field(default_factory=Future)
    drained: bool = False
    file: Path | None = None  # the job file

    def status(self) -> Status:
        """The status of a job under this process."""
        if not self.future.done():
            return "running"
        if self.drained:
            return "stopped"
        return "failed" if self.future.exception() else "finished"


class Seen(NamedTuple):
    """What a cluster says of a job: its id there, and the nodes that it has, or asks for while it waits."""

    id: str
    status: Status
    nodes: int


class Launcher(Protocol):
    """Starts jobs and ends them. A launcher of one's own inherits what it does not do better itself."""

    def check(self, job: Job) -> None:
        """Raise TenfoldError for a job that this system does not take."""

    def submit(self, job: Job) -> Handle:
        """Start the job, or queue it. Raises TenfoldError where it cannot run here."""
        ...

    def status(self, handle: Handle) -> Status: ...

    def interrupt(self, handle: Handle) -> None:
        """Ask the job to save and leave; returns at once."""
        ...

    def stop(self, handle: Handle) -> None:
        """End the job, whatever it is doing."""
        ...

    def logs(self, handle: Handle, lines: int) -> str:
        """The last `lines` lines of what the job printed."""
        ...

    def submit_all(self, name: str, jobs: Sequence[Job], at_once: int | None = None) -> Iterable[Handle]:
        """Start the jobs of the sweep `name`, which differ in their names, commands and files; `at_once` of them at a time.

        Where they are started one by one, each is started when its handle is asked for, and can be recorded before the next.
        """
        if at_once is not None:
            raise TenfoldError(f"This launcher starts all jobs of the sweep {name!r} together: leave out how many at once.")
        return map(self.submit, jobs)

    def drain(self, handle: Handle, deadline_s: float) -> bool:
        """Let the job save and leave; what is still there after `deadline_s` is stopped. True where that was not needed."""
        handle.drained = True
        self.interrupt(handle)
        end = time.monotonic() + deadline_s
        while self.status(handle) in ("waiting", "running"):
            if time.monotonic() > end:
                self.stop(handle)
                return False
            time.sleep(min(1.0, deadline_s / 100))
        return True

    def resize(self, handle: Handle, resources: Resources) -> Handle:
        """Let the job go on with other resources: here, by draining it and starting it again from what it saved."""
        job = replace(handle.job, resources=resources)
        self.check(job)  # a size that cannot be had leaves the job as it is
        self.drain(handle, handle.job.grace_s)
        return self.submit(job)

    def up(self) -> int:
        """How many nodes are up of those that its jobs may have."""
        raise TenfoldError("This launcher does not say which nodes are up: a fleet's pools are on slurm or ray.")

    def seen(self) -> dict[str, Seen]:
        """This user's jobs by the names of their files, of equal names the last one, as far as the cluster remembers them."""
        raise TenfoldError("This launcher does not list its jobs: a fleet's pools are on slurm or ray.")

    def close(self) -> None:
        """Drain the jobs that run under this process, and let go of what the launcher holds."""


def open_launcher(name: str, **options: Any) -> Launcher:
    """The launcher of an entry point `name`, with those `options` that are not None. Raises TenfoldError for wrong ones."""
    kind = load("launchers", name)
    given = {key: value for key, value in options.items() if value is not None}
    known = {option.name for option in fields(kind) if option.init}
    for key in given.keys() - known:
        takes = ", ".join(sorted(known)) or "no options"
        raise TenfoldError(f"The launcher {name!r} has no option {key!r}: it takes {takes}.")
    return kind(**given)


def run_all(launcher: Launcher, jobs: Sequence[Job], at_once: int) -> Iterator[tuple[int, Any]]:
    """Run jobs under this process, `at_once` at a time. Yields (index, result) as they end, in any order.

    When it is left early (Ctrl-C, an error in one job) the others save and leave.
    """
    waiting = list(enumerate(jobs))
    running: dict[Future[Any], int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                i, job = waiting.pop(0)
                running[launcher.submit(job).future] = i
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(ended), ended.result()
    finally:
        launcher.close()


def run(launcher: Launcher, job: Job) -> Any:
    """Run one job under this process to its end; a signal to this process lets the job save and leave."""
    try:
        with _signals_interrupt():
            return launcher.submit(job).future.result()
    finally:
        launcher.close()


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGUSR1 raise JobStopped within, as Ctrl-C raises KeyboardInterrupt."""

    def handle(number: int, frame: Any) -> None:
        raise JobStopped(f"Stopped by {signal.Signals(number).name}.")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
