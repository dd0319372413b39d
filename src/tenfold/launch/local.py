"""Jobs as processes of this machine: a function in a fork of a process that has imported its module, a command as it is.

Each job is a process group of its own, so that Ctrl-C is the launcher's to pass on. A function's process follows the one
that started it: where that is gone, it saves and leaves.
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
from typing import Any

import psutil

from tenfold.launch.child import follow_parent, set_threads
from tenfold.launch.command import command_words
from tenfold.launch.job import Handle, Job, Launcher, Status
from tenfold.spec.errors import TenfoldError
from tenfold.spec.threads import set_waiting_policy


@dataclass
class LocalLauncher(Launcher):
    """Starts every job at once."""

    _handles: list[Handle] = field(default_factory=list, init=False)

    def submit(self, job: Job) -> Handle:
        needs, memory = job.resources, psutil.virtual_memory().total
        if needs.nodes > 1:
            raise TenfoldError(f"The job {job.name!r} needs {needs.nodes} nodes, and this machine is one.")
        if needs.memory_bytes > memory:
            raise TenfoldError(
                f"The job {job.name!r} needs {needs.memory_bytes / 2**30:.1f} GiB, and this machine has {memory / 2**30:.1f}."
            )
        set_waiting_policy()
        handle = Handle(job, "")
        self._handles.append(handle)  # before it starts: Ctrl-C in between must not leave it behind
        handle.id, end = _start_function(job) if job.function else _start_command(job)
        threading.Thread(target=_settle, args=(handle, end), daemon=True).start()
        if job.time_limit_s is not None:
            limit = threading.Timer(max(0, job.time_limit_s - job.grace_s), self.drain, (handle, job.grace_s))
            limit.daemon = True
            limit.start()
        return handle

    def status(self, handle: Handle) -> Status:
        return handle.status()

    def interrupt(self, handle: Handle) -> None:
        with suppress(ProcessLookupError):
            os.kill(int(handle.id), signal.SIGTERM)

    def stop(self, handle: Handle) -> None:
        handle.drained = True
        with suppress(ProcessLookupError):
            os.killpg(int(handle.id), signal.SIGKILL)

    def close(self) -> None:
        left = [handle for handle in self._handles if handle.id and handle.status() == "running"]
        with ThreadPoolExecutor(max(1, len(left))) as pool:
            list(pool.map(lambda handle: self.drain(handle, handle.job.grace_s), left))


def _start_function(job: Job) -> tuple[str, Callable[[], Any]]:
    context = multiprocessing.get_context("forkserver")
    assert job.function is not None
    context.set_forkserver_preload([job.function.__module__])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_enter, args=(there, job))
    process.start()
    there.close()
    return str(process.pid), lambda: _outcome(here, process, job)


def _start_command(job: Job) -> tuple[str, Callable[[], Any]]:
    threads = {"OMP_NUM_THREADS": str(job.resources.threads)} if job.resources.threads else {}
    process = subprocess.Popen(command_words(job, sys.executable), process_group=0, env=os.environ | threads)

    def end() -> None:
        if status := process.wait():
            raise TenfoldError(f"{job.name} ended with exit status {status}.")

    return str(process.pid), end


def _settle(handle: Handle, end: Callable[[], Any]) -> None:
    """Wait for the end of a job, and give its handle the result."""
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
        how = f"was ended by {signal.Signals(-code).name} (is memory short?)" if code < 0 else "failed: see what it printed"
        raise TenfoldError(f"{job.name} {how}; started again, it goes on from what it saved.") from None
    process.join()
    if isinstance(outcome, TenfoldError):
        raise outcome
    return outcome


def _enter(link: Connection, job: Job) -> None:
    """In the process of a function."""
    os.setpgid(0, 0)
    follow_parent(job.grace_s)
    set_threads(job.resources.threads)
    try:
        outcome = _work(job)
    except TenfoldError as error:
        outcome = error
    with suppress(BrokenPipeError):  # where the parent is gone, all that counts is on disk
        link.send(outcome)


def _work(job: Job) -> Any:
    assert job.function is not None
    if job.elastic:
        from tenfold.launch.elastic import run_group  # PyTorch, which only groups need

        return run_group(job)
    return job.function(*job.arguments)
