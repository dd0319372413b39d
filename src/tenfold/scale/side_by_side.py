"""Runs of a ladder side by side: a process and one thread each on a CPU, one after another on a GPU.

Small models gain little from a second thread, and with one thread a run's numbers do not depend on how many cores
the machine has.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from tenfold.data.text.corpus import Corpus
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import RunConfig
from tenfold.train.trainer import RunResult, train


def workers(device: str) -> int:
    """How many runs at once: as many as PyTorch would use threads on a CPU, one on a GPU."""
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return 1 if on_gpu else torch.get_num_threads()


def train_side_by_side(
    runs: Sequence[tuple[RunConfig, Path]], corpus: Corpus, at_once: int, *, quiet: bool = False
) -> Iterator[tuple[int, RunResult]]:
    """Train each (config, directory), keeping metrics alone. Yields (index, result) as the runs end, in any order.

    When it is left early (Ctrl-C, an error in one run) the other runs save a checkpoint and stop. Raises TenfoldError
    where a run's process was ended from outside.
    """
    if at_once == 1:
        for i, (config, directory) in enumerate(runs):
            yield i, train(config, corpus, directory, title=f"run {i + 1}/{len(runs)}", quiet=quiet, keep_model=False)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tenfold.train.trainer"])
    waiting = list(enumerate(runs))
    running: dict[Connection, tuple[int, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                i, (config, directory) = waiting.pop(0)
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=_run, args=(there, config, corpus, directory))
                running[here] = i, process  # before it starts: Ctrl-C in between must not leave it behind
                process.start()
                there.close()
            for link in wait(list(running)):
                assert isinstance(link, Connection)
                i, ended = running.pop(link)
                yield i, _outcome(link, ended)
    finally:
        alive = [left for _, left in running.values() if left.is_alive()]
        for left in alive:
            left.terminate()  # a run that gets SIGTERM saves and leaves
        for left in alive:
            left.join()


def _outcome(link: Connection, process: BaseProcess) -> RunResult:
    try:
        outcome = link.recv()
    except EOFError:
        raise TenfoldError(
            "A process that trained a run of the ladder was ended from outside (is memory short?): start the climb "
            "again, and it goes on from there."
        ) from None
    process.join()
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _run(link: Connection, config: RunConfig, corpus: Corpus, directory: Path) -> None:
    """In a process of its own. Ctrl-C is the parent's to pass on; when the parent is gone, save and leave."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    outcome: RunResult | TenfoldError
    try:
        outcome = train(config, corpus, directory, quiet=True, keep_model=False)
    except TenfoldError as error:
        outcome = error
    with suppress(BrokenPipeError):  # where the parent is gone, all that counts is on disk
        link.send(outcome)


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
