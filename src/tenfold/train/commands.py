"""Train a model as a run file says, and go on with a run that was stopped.

The command `tenfold train` itself stands in `circle`, because it may ask the planner for a layout.
"""

import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct

from tenfold.spec.commands import File, Folder, Json, print_json
from tenfold.spec.errors import TenfoldError, when_stopped
from tenfold.spec.ranges import Nodes, Port, Text
from tenfold.train.config import RunConfig
from tenfold.train.run_file import read_config

Gpus = Annotated[int, Meta(ge=0, le=1024)]
MOST_PROCESSES = 4096  # of one machine
Planner = Callable[[RunConfig, int], RunConfig]  # a config, and the vocabulary of its corpus -> the config with a layout

if TYPE_CHECKING:
    from rich.console import Console

    from tenfold.train.result import RunResult


class RunOptions(Struct, frozen=True):
    """Where a run is kept, and the processes that train it."""

    out: Annotated[Folder | None, Meta(description="The run's directory; by default generations/NAME of the run file.")] = None
    home: Annotated[Folder, Meta(description="Where corpora and runs are kept.")] = Path("generations")
    launch: Annotated[str | None, Meta(description="local:N starts N processes here, and again when some are lost.")] = None
    json: Json = False

    def __post_init__(self) -> None:
        self.started  # noqa: B018  # refuses what --launch does not take

    @property
    def started(self) -> int | None:
        """How many processes this one starts; None where it trains itself."""
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
        """How many processes train."""
        return self.started or int(os.environ.get("WORLD_SIZE", "1"))


def resume(
    generation: Annotated[Folder, Meta(description="The directory of a run that was stopped.")],
    /,
    *,
    home: Annotated[Folder | None, Meta(description="Where the corpora are kept; by default beside the run.")] = None,
    json: Json = False,
) -> None:
    """Go on with a run from its newest checkpoint, to the very same weights as without the stop.

    Example: tenfold resume generations/run
    """
    from tenfold.train.result import read_result

    if not (generation / "run.toml").exists():
        raise TenfoldError(f"{generation} is no run: it has no run.toml.")
    if read_result(generation) is not None:
        raise TenfoldError(f"The run in {generation} has finished; there is nothing to resume.")
    run(read_config(generation / "run.toml"), generation, RunOptions(home=home or generation.parent, json=json))


def run(config: RunConfig, directory: Path, options: RunOptions, planner: Planner | None = None) -> None:
    """Train `config` in `directory` and say what came of it. `planner` chooses the layout when the corpus is known."""
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


class ClusterOptions(Struct, frozen=True):
    """What is asked of a cluster."""

    nodes: Annotated[Nodes, Meta(description="Nodes to train on.")]
    gpus_per_node: Annotated[Gpus, Meta(description="GPUs of a node; 0 trains on its CPU.")] = 8
    least_nodes: Annotated[Nodes | None, Meta(description="Go on with so few when others are lost; by default all.")] = None
    limit: Annotated[str | None, Meta(description="Time limit, hours:minutes:seconds; Slurm is asked for 24:00:00.")] = None
    save_s: Annotated[Nodes, Meta(description="Seconds to save in, ahead of the limit or after SIGTERM.")] = 180
    home: Annotated[Text, Meta(description="Where corpora and runs are kept, on all nodes alike.")] = "generations"


class SystemOptions(Struct, frozen=True):
    """Options of the cluster's system; each launcher takes its own."""

    partition: Annotated[str | None, Meta(description="Slurm's partition.")] = None
    account: Annotated[str | None, Meta(description="Slurm's account.")] = None
    image: Annotated[str | None, Meta(description="The container image, for Kubernetes.")] = None
    claim: Annotated[str | None, Meta(description="The volume claim that --home is on, for Kubernetes: tenfold.")] = None
    port: Annotated[Port, Meta(description="Where the nodes meet on the first; other jobs on it need another.")] = 29400
    folder: Annotated[Folder, Meta(description="Folder that the job file is written to.", extra={"flag": "--out"})] = Path()


def launch(
    run: Annotated[File, Meta(description="A run file.")],
    /,
    *,
    on: Annotated[Text, Meta(description="The cluster's launcher: slurm, kubernetes or ray.")],
    asked: ClusterOptions,
    system: SystemOptions = SystemOptions(),
    submit: Annotated[bool, Meta(description="Submit it too.")] = False,
    json: Json = False,
) -> None:
    """Write the job file that trains a run on many machines, show it, and submit it if asked to.

    Examples:

      tenfold launch run.toml --on slurm --nodes 2048 --limit 48:00:00 --submit

      tenfold launch run.toml --on kubernetes --nodes 4 --image registry.example/tenfold:1 --home /generations
    """
    from msgspec.structs import asdict as fields_of

    from tenfold.launch.job import Resources, open_launcher
    from tenfold.launch.job_files import JobFileLauncher
    from tenfold.spec.units import parse_clock
    from tenfold.train.jobs import command_job

    options = fields_of(system) | ({"home": asked.home} if on == "kubernetes" else {})
    launcher = open_launcher(on, **options)
    if not isinstance(launcher, JobFileLauncher):
        raise TenfoldError(f"The launcher {on!r} writes no job file: say slurm, kubernetes or ray.")
    gpus = asked.gpus_per_node
    needs = Resources(asked.nodes, asked.least_nodes, processes=gpus or 1, gpus=gpus)
    limit = parse_clock(asked.limit) if asked.limit else None
    job = command_job(run, needs, asked.home, grace_s=asked.save_s, time_limit_s=limit)
    handle = launcher.submit(job) if submit else None
    path = launcher.write(job) if handle is None else launcher.path(job)
    if json:
        print_json({"file": str(path), "job": path.read_text(), "submitted": handle.said if handle else None})
        return
    print(path.read_text())
    print(f"Written to {path}." if handle is None else f"Written to {path} and submitted: {handle.said}")


def _explain(config: RunConfig, vocab_size: int, out: "Console") -> None:
    """Print what is trained, and what was derived with its reason."""
    from tenfold.spec.units import si
    from tenfold.train.resolve import resolve

    r, seq_len = resolve(config, vocab_size), config.data.seq_len
    out.print(
        f"{r.spec.name}: {r.spec.dim} wide, {r.spec.n_layers} layers, {si(r.spec.parameters().total, 'parameters')}; "
        f"{si(r.tokens, 'tokens')}, {si(r.tokens * r.spec.train_flops_per_token(seq_len), 'FLOPs')}, "
        f"{r.h.steps} steps of {r.h.batch_size} x {seq_len} tokens."
    )
    if config.law is not None:
        out.print(f"  model and tokens: by the law of {config.law}")
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
