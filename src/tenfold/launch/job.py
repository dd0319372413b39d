"""Jobs, and the protocol of the launchers that start them: on this machine, Ray, Slurm, Kubernetes, or a plugin's system.

Launchers are entry points of the group `tenfold.launchers`. A launcher is a frozen dataclass whose fields are its options. It
accepts a job or raises TenfoldError.
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
    """The job was stopped by a signal before its end."""


@dataclass(frozen=True)
class Resources:
    """What a job needs. All fields but `nodes` and `least_nodes` are per node; 0 leaves the amount to the system.

    `least_nodes` is the number of nodes with which the job can go on when others are lost; None: all of them.
    """

    nodes: int = 1
    least_nodes: int | None = None
    processes: int = 1
    cores: int = 0
    gpus: int = 0
    memory_bytes: int = 0

    @property
    def threads(self) -> int:
        """Threads of each process; 0 leaves the number to the process."""
        return max(1, self.cores // self.processes) if self.cores else 0

    def shrinks_to(self, other: "Resources") -> bool:
        """Whether `other` has fewer nodes, but at least `least_nodes`, and is otherwise the same."""
        return (self.least_nodes or self.nodes) <= other.nodes < self.nodes and replace(self, nodes=other.nodes) == other


@dataclass(frozen=True)
class Job:
    """Work to start: a command line, or a function with its arguments, which must be picklable.

    If the first word of the command is `python`, it stands for the interpreter where the job runs. `files` are the paths that
    the command reads; a cluster that does not share this machine's disks gets copies of them. A job of several processes runs
    as under `torchrun`: when one process is lost, all are restarted, up to `restarts` times. After SIGTERM, or ahead of the time
    limit, a job has `grace_s` seconds to save. Failures are recorded in `directory`, which no other job may use; when the same
    failure comes for the `same_failures`th time, the job ends. `environment` is added to the environment of a command's processes.

    Raises TenfoldError for impossible values.
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
            raise TenfoldError(f"The job {self.name!r} of several processes needs a directory to record its failures in.")
        asked = {
            "nodes": needs.nodes, "least_nodes": needs.least_nodes, "processes": needs.processes, "grace_s": self.grace_s,
            "same_failures": self.same_failures,
        }  # fmt: skip
        for name, value in asked.items():
            if value is not None and value < 1:
                raise TenfoldError(f"The job {self.name!r} needs {name} of at least 1, not {value}.")
        if min(needs.cores, needs.gpus, needs.memory_bytes) < 0:
            raise TenfoldError(f"The job {self.name!r} cannot ask for negative amounts of cores, gpus or memory: {needs}.")
        if needs.least_nodes is not None and needs.least_nodes > needs.nodes:
            raise TenfoldError(f"The job {self.name!r} has {needs.nodes} nodes, fewer than its least_nodes {needs.least_nodes}.")
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise TenfoldError(f"{name!r} cannot name an environment variable: write NAME=VALUE, such as NCCL_DEBUG=INFO.")

    @property
    def elastic(self) -> bool:
        """Whether its processes run under PyTorch's elastic agent."""
        return self.restarts > 0 or self.resources.nodes * self.resources.processes > 1


@dataclass
class Handle:
    """A submitted job. If the job runs under this process, `future` holds its result once it has ended."""

    job: Job
    id: str
    said: str = ""  # the answer of the system that it was submitted to
    future: Future[Any] = field(default_factory=Future)
    drained: bool = False  # whether it was asked to stop
    file: Path | None = None  # the job file

    def status(self) -> Status:
        """The status of a job that runs under this process."""
        if not self.future.done():
            return "running"
        if self.drained:
            return "stopped"
        return "failed" if self.future.exception() else "finished"


class Seen(NamedTuple):
    """A job as the cluster lists it: its id, its status, and the nodes that it has, or asks for while it waits."""

    id: str
    status: Status
    nodes: int


class Launcher(Protocol):
    """Starts and ends jobs. A plugin's launcher inherits from this class and overrides what its system does differently."""

    def check(self, job: Job) -> None:
        """Raise TenfoldError for a job that this system does not accept."""

    def submit(self, job: Job) -> Handle:
        """Start the job, or queue it. Raises TenfoldError if it cannot run here."""
        ...

    def status(self, handle: Handle) -> Status: ...

    def interrupt(self, handle: Handle) -> None:
        """Ask the job to save and exit; returns at once."""
        ...

    def stop(self, handle: Handle) -> None:
        """End the job without letting it save."""
        ...

    def logs(self, handle: Handle, lines: int) -> str:
        """The last `lines` lines that the job printed."""
        ...

    def submit_all(self, name: str, jobs: Sequence[Job], at_once: int | None = None) -> Iterable[Handle]:
        """Start the jobs of the sweep `name`, at most `at_once` of them at a time. They differ in names, commands and files only.

        A launcher that submits them one by one does so lazily, when the iterator is asked for the next handle, so that the caller
        can record each job before the next is submitted. Raises TenfoldError if the launcher cannot limit them to `at_once`.
        """
        if at_once is not None:
            raise TenfoldError(f"This launcher starts all jobs of the sweep {name!r} together: leave out the limit.")
        return map(self.submit, jobs)

    def drain(self, handle: Handle, deadline_s: float) -> bool:
        """Ask the job to save and exit, and kill it after `deadline_s` seconds. Returns whether it exited by itself."""
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
        """Let the job go on with other resources. This default drains it, and submits it again to resume from what it saved."""
        job = replace(handle.job, resources=resources)
        self.check(job)  # before draining, so that a refused size leaves the job running
        self.drain(handle, handle.job.grace_s)
        return self.submit(job)

    def up(self) -> int:
        """The number of nodes that are up, among those that this launcher's jobs may use."""
        raise TenfoldError("This launcher cannot count the nodes that are up: put the fleet's pools on slurm or ray.")

    def seen(self) -> dict[str, Seen]:
        """This user's jobs that the cluster knows, by the names of their job files; of several with the same name, the last one."""
        raise TenfoldError("This launcher cannot list its jobs: put the fleet's pools on slurm or ray.")

    def close(self) -> None:
        """Drain the jobs that run under this process, and free the launcher's resources."""


def open_launcher(name: str, **options: Any) -> Launcher:
    """The launcher of the entry point `name`, made with the `options` that are not None. Raises TenfoldError for unknown ones."""
    kind = load("launchers", name)
    given = {key: value for key, value in options.items() if value is not None}
    known = {option.name for option in fields(kind) if option.init}
    for key in given.keys() - known:
        takes = ", ".join(sorted(known)) or "no options"
        raise TenfoldError(f"The launcher {name!r} has no option {key!r}: it takes {takes}.")
    return kind(**given)


def run_all(launcher: Launcher, jobs: Sequence[Job], at_once: int) -> Iterator[tuple[int, Any]]:
    """Run jobs under this process, `at_once` (1 or more) at a time. Yields (index, result) as they end, in any order.

    When the iteration ends early (Ctrl-C, an error in one job), the jobs that still run are drained.
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
    """Run one job under this process to its end, and return its result. A signal to this process drains the job."""
    try:
        with _signals_interrupt():
            return launcher.submit(job).future.result()
    finally:
        launcher.close()


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 raise JobStopped in the block, as Ctrl-C raises KeyboardInterrupt."""

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
