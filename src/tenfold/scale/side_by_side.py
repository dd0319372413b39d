"""Runs of a ladder side by side: a process and one thread each on a CPU, one after another on a GPU.

Small models gain little from a second thread, and with one thread a run's numbers do not depend on how many cores
the machine has.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from tenfold.data.corpus import Corpus, open_corpus
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import RunConfig
from tenfold.train.loop import RunResult, train


def workers(device: str) -> int:
    """How many runs at once: as many as PyTorch would use threads on a CPU, one on a GPU."""
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return 1 if on_gpu else torch.get_num_threads()


def train_side_by_side(
    runs: Sequence[tuple[RunConfig, Path]], corpus: Corpus, at_once: int, *, quiet: bool = False
) -> Iterator[tuple[int, RunResult]]:
    """Train each (config, directory), keeping metrics alone. Yields (index, result) as the runs end, in any order.

    When it is left early (Ctrl-C, an error in one run) the other runs save a checkpoint and stop.
    """
    if at_once == 1:
        for i, (config, directory) in enumerate(runs):
            yield i, train(config, corpus, directory, title=f"run {i + 1}/{len(runs)}", quiet=quiet, keep_model=False)
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(at_once, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)
    futures = {pool.submit(_run, config, corpus.directory, directory): i for i, (config, directory) in enumerate(runs)}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise TenfoldError(
            "A process that trained a run of the ladder was ended from outside (is memory short?): start the climb "
            "again, and it goes on from there."
        ) from None
    finally:
        for future in futures:
            future.cancel()
        while not all(future.done() for future in futures):  # again, since a worker may have taken its next run
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()  # a run that gets SIGTERM saves and leaves
            wait(futures, timeout=1)
        pool.shutdown()


def _begin() -> None:
    """Of a worker: one thread; Ctrl-C is the parent's to pass on; when the parent is gone, save and leave."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _run(config: RunConfig, corpus_directory: Path, directory: Path) -> RunResult:
    return train(config, open_corpus(corpus_directory), directory, quiet=True, keep_model=False)
