"""Training the runs of a ladder: side by side on a CPU, one after another on a GPU, or as tasks of a cluster.

On a CPU each run has one thread: small models gain little from a second, and a run's numbers do not depend on how many cores
the machine has.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from msgspec.structs import replace

from tenfold.data.text.corpus import Corpus
from tenfold.launch.job import Job, Resources, open_launcher, run_all
from tenfold.spec.accelerator import torch_device
from tenfold.train.config import RunConfig
from tenfold.train.device import resolve_device
from tenfold.train.resolve import resolve_model
from tenfold.train.result import RunResult
from tenfold.train.tasks.pretrain import pretrain

PROCESS_BYTES = 2**30  # Python, PyTorch and the batches
BYTES_PER_PARAMETER = 16  # weights, gradient and two moments in 32 bits

Run = tuple[RunConfig, Path]  # and the run's directory


def workers(device: str) -> int:
    """How many runs at once on this machine: as many as PyTorch would use threads on a CPU, one on an accelerator."""
    return torch.get_num_threads() if resolve_device(device) == "cpu" else 1


def train_rungs(
    runs: Sequence[Run], corpus: Corpus, at_once: int, *, on: str = "local", quiet: bool = False
) -> Iterator[tuple[int, RunResult]]:
    """Train the runs, keeping metrics alone, by the launcher `on`. Yields (index, result) as they end, in any order.

    When it is left early (Ctrl-C, an error in one run) the other runs save a checkpoint and stop.
    """
    if on == "local" and at_once == 1:
        for i, (config, directory) in enumerate(runs):
            yield i, pretrain(config, corpus, directory, quiet=quiet, keep_model=False)
        return
    yield from run_all(open_launcher(on), [_job(run, corpus) for run in runs], at_once)


def _job(run: Run, corpus: Corpus) -> Job:
    config, directory = run
    config = replace(config, threads=1)
    spec, _ = resolve_model(config, corpus.vocab_size)
    memory = PROCESS_BYTES + BYTES_PER_PARAMETER * spec.parameters().total
    needs = Resources(cores=1, gpus=1 if torch_device(config.device).startswith("cuda") else 0, memory_bytes=memory)
    name = f"the run in {directory}"
    return Job(name, function=train_rung, arguments=(config, corpus, directory), resources=needs, directory=directory)


def train_rung(config: RunConfig, corpus: Corpus, directory: Path) -> RunResult:
    return pretrain(config, corpus, directory, quiet=True, keep_model=False)
