"""Jobs as processes of this machine. A function runs in a fork of a server process that has imported its module; a command runs
from a bash script.

Each job is a process group of its own, so that Ctrl-C in the terminal reaches only the launcher, which drains the jobs. When the
process that started them dies, functions save and exit; commands go on.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ClassVar

import psutil

from tenfold.launch.child import follow_parent, set_threads
from tenfold.launch.command import command_words
from tenfold.launch.job import Handle, Job, Status
from tenfold.launch.job_files import JobFileLauncher, last_lines
from tenfold.spec.errors import TenfoldError
from tenfold.spec.threads import set_waiting_policy


@dataclass(frozen=True)
class LocalLauncher(JobFileLauncher):
    """Starts every job immediately. A command's output and exit status are written to files in `folder`."""

    _handles: list[Handle] = field(default_factory=list, init=False)

    template: ClassVar[str] = "local.sh"

    @property
    def python(self) -> str:
        return sys.executable

    def check(self, job: Job) -> None:
        needs, memory = job.resources, psutil.virtual_memory().total
        if needs.nodes > 1:
            raise TenfoldError(f"The job {job.name!r} needs {needs.nodes} nodes, and this machine is one: use a cluster.")
        if needs.memory_bytes > memory:
            raise TenfoldError(
                f"The job {job.name!r} needs {needs.memory_bytes / 2**30:.1f} GiB, and this machine has {memory / 2**30:.1f}."
            )

    def facts(self, job: Job) -> dict[str, Any]:
        threads = {"OMP_NUM_THREADS": str(job.resources.threads)} if job.resources.threads else {}
        return {
            "words": command_words(job, self.python), "environment": threads | dict(job.environment),
            "limit_s": job.time_limit_s and max(1, job.time_limit_s - job.grace_s),
            "log": str(self._file(job, "log")), "ended": str(self._file(job, "ended")),
        }  # fmt: skip

    def submit(self, job: Job) -> Handle:
        self.check(job)
        set_waiting_policy()
        handle = Handle(job, "", file=self.path(job) if job.command else None)
        self._handles.append(handle)  # before the job starts, so that `close` drains it even if Ctrl-C comes in between
        handle.id, end = _start_function(job) if job.function else self._start_command(job)
        handle.said = f"process {handle.id}"
        threading.Thread(target=_settle, args=(handle, end), daemon=True).start()
        if job.function and job.time_limit_s is not None:
            limit = threading.Timer(max(0, job.time_limit_s - job.grace_s), self.drain, (handle, job.grace_s))
            limit.daemon = True
            limit.start()
        return handle

    def status(self, handle: Handle) -> Status:
        """The status of the job. A command may have been started by another process."""
        if handle.job.function or handle in self._handles:
            return handle.status()
        if self._processes(handle):
            return "running"
        ended = self._file(handle.job, "ended")
        if handle.drained:
            return "stopped"
        return "finished" if ended.exists() and ended.read_text().strip() == "0" else "failed"

    def interrupt(self, handle: Handle) -> None:
        if handle.job.function or self._processes(handle):
            with suppress(ProcessLookupError):
                os.kill(int(handle.id), signal.SIGTERM)

    def stop(self, handle: Handle) -> None:
        handle.drained = True
        for process in [] if handle.job.function else self._processes(handle):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if handle.job.function:
            with suppress(ProcessLookupError):
                os.killpg(int(handle.id), signal.SIGKILL)

    def logs(self, handle: Handle, lines: int) -> str:
        return last_lines(self._file(handle.job, "log"), lines)

    def close(self) -> None:
        left = [handle for handle in self._handles if handle.id and handle.status() == "running"]
        with ThreadPoolExecutor(max(1, len(left))) as pool:
            list(pool.map(lambda handle: self.drain(handle, handle.job.grace_s), left))

    def _file(self, job: Job, ending: str) -> Path:
        return self.path(job).resolve().with_suffix(f".{ending}")

    def _processes(self, handle: Handle) -> list[psutil.Process]:
        """The processes of a command, its script first; an empty list if it has ended, even if another process got its id."""
        with suppress(psutil.NoSuchProcess):
            script = psutil.Process(int(handle.id))
            if script.status() != psutil.STATUS_ZOMBIE and str(self.path(handle.job).resolve()) in script.cmdline():
                return [script, *script.children(recursive=True)]
        return []

    def _start_command(self, job: Job) -> tuple[str, Callable[[], Any]]:
        path = self.write(job).resolve()
        self._file(job, "ended").unlink(missing_ok=True)
        process = subprocess.Popen(["bash", str(path)], start_new_session=True, stdin=subprocess.DEVNULL)

        def end() -> None:
            if status := process.wait():
                raise TenfoldError(f"{job.name} ended with exit status {status}: see {self._file(job, 'log')}.")

        return str(process.pid), end


def _start_function(job: Job) -> tuple[str, Callable[[], Any]]:
    context = multiprocessing.get_context("forkserver")
    assert job.function is not None
    context.set_forkserver_preload([job.function.__module__])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_enter, args=(there, job))
    process.start()
    there.close()
    return str(process.pid), lambda: _outcome(here, process, job)


def _settle(handle: Handle, end: Callable[[], Any]) -> None:
    """Wait for the end of a job, and set the result or the error of its handle."""
    try:
        handle.future.set_result(end())
    except Exception as error:
        handle.future.set_exception(error)


def _outcome(link: Connection, process: BaseProcess, job: Job) -> Any:
    try:
        outcome = link.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name} (out of memory?)" if code < 0 else "failed: see what it printed"
        raise TenfoldError(f"{job.name} {how}; started again, it goes on from what it saved.") from None
    process.join()
    if isinstance(outcome, TenfoldError):
        raise outcome
    return outcome


def _enter(link: Connection, job: Job) -> None:
    """Run the job's function in its own process, and send its result or its TenfoldError through `link`."""
    os.setpgid(0, 0)
    follow_parent(job.grace_s)
    set_threads(job.resources.threads)
    try:
        outcome = _work(job)
    except TenfoldError as error:
        outcome = error
    with suppress(BrokenPipeError):  # the parent has died: nobody reads the result
        link.send(outcome)


def _work(job: Job) -> Any:
    assert job.function is not None
    if job.elastic:
        from tenfold.launch.elastic import run_group  # here, since it imports PyTorch, which a job of one process may not need

        return run_group(job)
    return job.function(*job.arguments)
