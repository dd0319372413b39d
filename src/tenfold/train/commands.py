"""Train a model from a run file, and resume a run that was stopped.

The command `tenfold train` itself is in `tenfold.circle`, because it may ask the planner for a layout.
"""

import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct

from tenfold.spec.commands import Folder, Json, print_json
from tenfold.spec.errors import TenfoldError, when_stopped
from tenfold.train.config import RunConfig
from tenfold.train.run_file import read_config

MOST_PROCESSES = 4096  # on one machine
Planner = Callable[[RunConfig, int], RunConfig]  # (config, vocab_size of its corpus) -> the config with a layout

if TYPE_CHECKING:
    from rich.console import Console

    from tenfold.train.result import RunResult


class RunOptions(Struct, frozen=True):
    """Where a run is stored, and the processes that train it."""

    out: Annotated[
        Folder | None, Meta(description="The run's directory; by default generations/NAME, where the run file is NAME.toml.")
    ] = None
    home: Annotated[Folder, Meta(description="Folder where corpora and runs are stored.")] = Path("generations")
    launch: Annotated[
        str | None, Meta(description="local:N trains with N processes on this machine, restarted when some are lost.")
    ] = None
    json: Json = False

    def __post_init__(self) -> None:
        self.started  # noqa: B018  # raises TenfoldError for a wrong --launch

    @property
    def started(self) -> int | None:
        """The number of processes that this one starts; None if it trains itself."""
        if self.launch is None:
            return None
        where, _, number = self.launch.partition(":")
        if where != "local" or not number.isdecimal() or not 1 <= int(number) <= MOST_PROCESSES:
            raise TenfoldError(
                f"--launch takes local:N, such as local:8, with N from 1 to {MOST_PROCESSES}, not {self.launch!r}; for a cluster "
                "use `tenfold launch`."
            )
        return int(number)

    @property
    def world(self) -> int:
        """The number of processes that train."""
        return self.started or int(os.environ.get("WORLD_SIZE", "1"))


def resume(
    generation: Annotated[Folder, Meta(description="The directory of a run that was stopped.")],
    /,
    *,
    home: Annotated[
        Folder | None, Meta(description="Folder where the corpora are stored; by default the folder that holds the run.")
    ] = None,
    json: Json = False,
) -> None:
    """Resume a run from its newest checkpoint; it ends with the same weights, bit for bit, as if it had not been stopped.

    Example: tenfold resume generations/run
    """
    from tenfold.train.result import read_result

    if not (generation / "run.toml").exists():
        raise TenfoldError(f"{generation} is not a run: it has no run.toml.")
    if read_result(generation) is not None:
        raise TenfoldError(f"The run in {generation} has finished; there is nothing to resume.")
    run(read_config(generation / "run.toml"), generation, RunOptions(home=home or generation.parent, json=json))


def run(config: RunConfig, directory: Path, options: RunOptions, planner: Planner | None = None) -> None:
    """Train `config` in `directory` and print the result. `planner` chooses the layout once the corpus is known."""
    from tenfold.launch.failures import noted
    from tenfold.spec.terminal import console
    from tenfold.train.identity import as_begun
    from tenfold.train.parallel.processes import start_processes
    from tenfold.train.tasks.find import open_task
    from tenfold.train.trainer import fit, standard_hooks

    with noted(directory), when_stopped("the same command goes on from the last checkpoint"):
        start_processes()
        first = int(os.environ.get("RANK", "0")) == 0
        out = console(stderr=options.json, quiet=not first)
        config = as_begun(config, directory)
        task = open_task(config, options.home)
        _explain(config, task.vocab_size, out)
        if planner is not None:
            config = planner(config, task.vocab_size)
        if options.started is None:
            result = fit(task, config, directory, standard_hooks(config, quiet=options.json))
        else:
            result = _on_processes(config, directory, options)
    if not result.finished:
        raise TenfoldError(f"Stopped and saved at step {result.step}: `tenfold resume {directory}` goes on from there.")
    if not options.json:
        out.print(_summary(result))
    elif first:
        print_json(asdict(result))


def _on_processes(config: RunConfig, directory: Path, options: RunOptions) -> "RunResult":
    from tenfold.launch.job import Resources, open_launcher
    from tenfold.spec.threads import available_cores
    from tenfold.train.jobs import train_on

    cores = 0 if "OMP_NUM_THREADS" in os.environ else available_cores()
    needs = Resources(processes=options.world, cores=cores)
    return train_on(open_launcher("local"), needs, config, directory, options.home, quiet=options.json)


def _explain(config: RunConfig, vocab_size: int, out: "Console") -> None:
    """Print the model, tokens and steps, and each derived hyperparameter with its reason."""
    from tenfold.spec.units import si
    from tenfold.train.resolve import resolve

    r, seq_len = resolve(config, vocab_size), config.data.seq_len
    out.print(
        f"{r.spec.name}: {r.spec.dim} wide, {r.spec.n_layers} layers, {si(r.spec.parameters().total, 'parameters')}; "
        f"{si(r.tokens, 'tokens')}, {si(r.tokens * r.spec.train_flops_per_token(seq_len), 'FLOPs')}, "
        f"{r.h.steps} steps of {r.h.batch_size} x {seq_len} tokens."
    )
    if config.law is not None:
        out.print(f"  model and tokens: from the scaling law {config.law}")
    for name, reason in r.h.reasons.items():
        out.print(f"  {name} = {getattr(r.h, name):.4g}: {reason}")


def _summary(result: "RunResult") -> str:
    from tenfold.spec.units import duration, si

    text = f"{result.bits_per_byte:.4f} bits per byte ({result.loss:.4f} nats per token)"
    other = ", ".join(f"{name} {value:.4f}" for name, value in {"loss": result.loss, **result.scores}.items())
    return (
        f"Validation: {other if math.isnan(result.bits_per_byte) else text}. {duration(result.seconds)}, "
        f"{si(result.tokens_per_s, 'tokens/s')}, MFU {result.mfu:.0%}, {result.energy_kwh * 1000:.2f} Wh ({result.energy_source}), "
        f"peak memory {result.peak_memory_gib:.2f} GiB."
    )
