"""Training of a ladder's runs: in parallel on a CPU, one after another on a GPU, or as tasks of a cluster.

On a CPU each run has one thread: small models gain little from a second, and the results of a run then do not depend on the
number of cores.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from tenfold.data.text.corpus import Corpus
from tenfold.launch.job import Job, Resources, open_launcher, run_all
from tenfold.spec.accelerator import torch_device
from tenfold.train.config import RunConfig
from tenfold.train.device import resolve_device
from tenfold.train.resolve import resolve_model
from tenfold.train.result import RunResult
from tenfold.train.task import Task
from tenfold.train.tasks.find import open_task
from tenfold.train.tasks.pretrain import Pretraining
from tenfold.train.trainer import fit, standard_hooks

PROCESS_BYTES = 2**30  # Python, PyTorch and the batches of one run
BYTES_PER_PARAMETER = 16  # float32 weights, gradients and two moments

Run = tuple[RunConfig, Path]  # a run's configuration and its directory


@dataclass(frozen=True)
class Opened:
    """Data of another task than pretraining, with the part of a `Corpus`'s interface that a climb needs.

    Each run opens the data itself, in `home`.
    """

    home: Path
    vocab_size: int
    fingerprint: str
    epoch_tokens: int

    def opening(self, tokens: int) -> str:
        """An empty prompt: these data have no text to begin a sample with."""
        return ""


Source = Corpus | Opened


def task_on(config: RunConfig, source: Source, home: Path) -> Task:
    """The task of a run on a climb's data; what pretraining prepares, such as images, is kept in `home`."""
    return open_task(config, source.home, quiet=True) if isinstance(source, Opened) else Pretraining(config, source, home)


def train_on_source(config: RunConfig, source: Source, directory: Path, **how: Any) -> RunResult:
    """Train a run, or resume it; `how` are options of `standard_hooks`."""
    return fit(task_on(config, source, directory.parent), config, directory, standard_hooks(config, **how))


def workers(device: str) -> int:
    """How many runs this machine trains at once: as many as PyTorch uses threads on a CPU, one on an accelerator."""
    return torch.get_num_threads() if resolve_device(device) == "cpu" else 1


def train_rungs(
    runs: Sequence[Run], corpus: Source, at_once: int, *, on: str = "local", quiet: bool = False
) -> Iterator[tuple[int, RunResult]]:
    """Train the runs, `at_once` of them in parallel, with the launcher `on`. Yields (index, result) as runs end, in any order.

    Only the metrics of a run are kept, not its model. When the generator is closed early (Ctrl-C, an error in one run), the other
    runs save a checkpoint and stop.
    """
    if on == "local" and at_once == 1:
        for i, (config, directory) in enumerate(runs):
            yield i, train_on_source(config, corpus, directory, quiet=quiet, keep_model=False)
        return
    yield from run_all(open_launcher(on), [_job(run, corpus) for run in runs], at_once)


def _job(run: Run, corpus: Source) -> Job:
    config, directory = run
    config = replace(config, threads=1)
    spec, _ = resolve_model(config, corpus.vocab_size)
    memory = PROCESS_BYTES + BYTES_PER_PARAMETER * spec.parameters().total
    needs = Resources(cores=1, gpus=1 if torch_device(config.device).startswith("cuda") else 0, memory_bytes=memory)
    name = f"the run in {directory}"
    return Job(name, function=train_rung, arguments=(config, corpus, directory), resources=needs, directory=directory)


def train_rung(config: RunConfig, corpus: Source, directory: Path) -> RunResult:
    return train_on_source(config, corpus, directory, quiet=True, keep_model=False)
