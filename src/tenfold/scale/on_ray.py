"""Runs of a ladder as Ray tasks, each with the cores, the GPU and the memory that it needs.

The cluster is the one that `RAY_ADDRESS` names, or this machine. Its nodes share the file system of the generations.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tenfold.data.text.corpus import Corpus
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import RunConfig, resolve_model
from tenfold.train.trainer import RunResult, train

PROCESS_BYTES = 2**30  # Python, PyTorch and the batches
BYTES_PER_PARAMETER = 16  # weights, gradient and two moments in 32 bits


def train_on_ray(runs: Sequence[tuple[RunConfig, Path]], corpus: Corpus) -> Iterator[tuple[int, RunResult]]:
    """Train each (config, directory) as a task, keeping metrics alone. Yields (index, result) as they end, in any order.

    When it is left early the other runs save a checkpoint and stop. A task whose node is lost starts again from its
    checkpoint. Raises TenfoldError where Ray is missing, cannot be reached, or has no node with what a run needs.
    """
    ray = _connect()
    task = ray.remote(max_retries=3)(_train)
    pending: dict[Any, int] = {}
    try:
        resources = [_resources(config, corpus) for config, _ in runs]
        _require(ray.nodes(), resources)
        for i, (config, directory) in enumerate(runs):
            pending[task.options(**resources[i]).remote(config, corpus, directory)] = i
        while pending:
            for done in ray.wait(list(pending))[0]:
                i = pending.pop(done)
                try:
                    outcome = ray.get(done)
                except ray.exceptions.RayError as error:
                    raise TenfoldError(
                        f"Ray lost the run in {runs[i][1]} ({type(error).__name__}): start the climb again, and it goes on "
                        "from there."
                    ) from None
                if isinstance(outcome, TenfoldError):
                    raise outcome
                yield i, outcome
    finally:
        for left in pending:
            ray.cancel(left)  # an interrupt: a run that gets one saves and leaves
        for left in pending:
            with suppress(ray.exceptions.RayError):
                ray.get(left)
        ray.shutdown()


def _train(config: RunConfig, corpus: Corpus, directory: Path) -> RunResult | TenfoldError:
    """In a process of Ray's. One thread, so that the numbers are those of a climb without Ray."""
    torch.set_num_threads(1)
    try:
        return train(config, corpus, directory, quiet=True, keep_model=False)
    except TenfoldError as error:
        return error


def _resources(config: RunConfig, corpus: Corpus) -> dict[str, float]:
    spec, _ = resolve_model(config, corpus.vocab_size)
    on_gpu = config.device.startswith("cuda")
    memory = PROCESS_BYTES + BYTES_PER_PARAMETER * spec.parameters().total
    return {"num_cpus": 1, "num_gpus": 1 if on_gpu else 0, "memory": memory}


def _connect() -> Any:
    try:
        import ray
    except ImportError:
        raise TenfoldError("--on ray needs Ray: pip install 'tenfold[ray]'.") from None
    address = os.environ.get("RAY_ADDRESS")
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=None if address else False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise TenfoldError(f"The Ray cluster at {address or 'this machine'} does not answer: {why}") from None
    return ray


def _require(nodes: list[dict[str, Any]], wanted: list[dict[str, float]]) -> None:
    """Raises TenfoldError where no node has what some run needs: Ray would wait for one for ever."""
    has = [node["Resources"] for node in nodes if node["Alive"]]
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    for need in wanted:
        if not any(all(node.get(names[key], 0) >= amount for key, amount in need.items()) for node in has):
            raise TenfoldError(
                f"No node of the Ray cluster has {need['num_cpus']:g} CPU, {need['num_gpus']:g} GPU and "
                f"{need['memory'] / 2**30:.1f} GiB for a run of the ladder: add one, or climb lower."
            )
