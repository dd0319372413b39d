"""Go on with a run that was stopped, and train one on a cluster.

The command `tenfold train` itself stands in `circle`, because it may ask the planner for a layout.
"""

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct, structs

from tenfold.spec.commands import Json, print_json
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import RunConfig, read_config

Planner = Callable[[RunConfig, int], RunConfig]  # a config, and the vocabulary of its corpus -> the config with a layout

if TYPE_CHECKING:
    from rich.console import Console

    from tenfold.launch.job import Job
    from tenfold.train.result import RunResult


class RunOptions(Struct, frozen=True):
    """Where a run is kept, and the processes that train it."""

    out: Annotated[Path | None, Meta(description="The run's directory; by default generations/NAME of the run file.")] = None
    home: Annotated[Path, Meta(description="Where corpora and runs are kept.")] = Path("generations")
    launch: Annotated[str | None, Meta(description="local:N starts N processes here, and again when some are lost.")] = None
    json: Json = False

    @property
    def started(self) -> int | None:
        """How many processes this one starts; None where it trains itself."""
        if self.launch is None:
            return None
        where, _, number = self.launch.partition(":")
        if where != "local" or not number.isdecimal() or int(number) < 1:
            raise TenfoldError(f"--launch takes local:N, such as local:8, not {self.launch!r}; for a cluster use `tenfold launch`.")
        return int(number)

    @property
    def world(self) -> int:
        """How many processes train."""
        return self.started or int(os.environ.get("WORLD_SIZE", "1"))


def resume(
    generation: Annotated[Path, Meta(description="The directory of a run that was stopped.")],
    /,
    *,
    home: Annotated[Path | None, Meta(description="Where the corpora are kept; by default beside the run.")] = None,
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


class ClusterOptions(Struct, frozen=True):
    """What a cluster is asked for."""

    nodes: Annotated[int, Meta(description="Nodes to train on.")]
    gpus_per_node: Annotated[int, Meta(description="GPUs of a node; 0 trains on its CPU.")] = 8
    least_nodes: Annotated[int | None, Meta(description="Go on with so few when others are lost; by default all.")] = None
    limit: Annotated[str | None, Meta(description="Time limit, hours:minutes:seconds; Slurm is asked for 24:00:00.")] = None
    save_s: Annotated[int, Meta(description="Seconds to save in, before the limit or after SIGTERM.")] = 180
    home: Annotated[str, Meta(description="Where corpora and runs are kept, at the same path on all nodes.")] = "generations"
    port: Annotated[int, Meta(description="Port of the first node where all meet; each job on that node needs its own.")] = 29400

    def job(self, run: Path) -> "Job":
        """The job that trains a run file."""
        from tenfold.launch.job import Resources
        from tenfold.spec.units import parse_clock
        from tenfold.train.jobs import command_job

        needs = Resources(self.nodes, self.least_nodes, processes=self.gpus_per_node or 1, gpus=self.gpus_per_node)
        limit = parse_clock(self.limit) if self.limit else None
        return command_job(run, needs, self.home, grace_s=self.save_s, time_limit_s=limit)


class SystemOptions(Struct, frozen=True):
    """What one system alone knows."""

    partition: Annotated[str | None, Meta(description="Slurm's partition.")] = None
    account: Annotated[str | None, Meta(description="Slurm's account.")] = None
    image: Annotated[str | None, Meta(description="The container image, for Kubernetes.")] = None
    claim: Annotated[str | None, Meta(description="The volume claim that --home is on, for Kubernetes: tenfold.")] = None


class JobOptions(Struct, frozen=True):
    """What is done with a job file."""

    out: Annotated[Path, Meta(description="Folder that the job file is written to.")] = Path()
    submit: Annotated[bool, Meta(description="Submit it too.")] = False
    json: Json = False


def launch(
    run: Annotated[Path, Meta(description="A run file.")],
    /,
    *,
    on: Annotated[str, Meta(description="slurm, kubernetes or ray.")],
    cluster: ClusterOptions,
    system: SystemOptions = SystemOptions(),
    file: JobOptions = JobOptions(),
) -> None:
    """Write the job file that trains a run on many machines, show it, and submit it if asked to.

    Examples:

      tenfold launch run.toml --on slurm --nodes 2048 --limit 48:00:00 --submit

      tenfold launch run.toml --on kubernetes --nodes 4 --image registry.example/tenfold:1 --home /generations
    """
    from tenfold.launch.job import open_launcher
    from tenfold.launch.job_files import JobFileLauncher

    home = {"home": cluster.home} if on == "kubernetes" else {}
    launcher = open_launcher(on, folder=file.out, port=cluster.port, **structs.asdict(system), **home)
    if not isinstance(launcher, JobFileLauncher):
        raise TenfoldError(f"The launcher {on!r} writes no job file: say slurm, kubernetes or ray.")
    job = cluster.job(run)
    answer = launcher.submit(job).said if file.submit else None
    path = launcher.path(job) if file.submit else launcher.write(job)
    if file.json:
        print_json({"file": str(path), "job": path.read_text(), "submitted": answer})
        return
    print(path.read_text())
    print(f"Written to {path}." if answer is None else f"Written to {path} and submitted: {answer}")


def run(config: RunConfig, directory: Path, options: RunOptions, planner: Planner | None = None) -> None:
    """Train `config` in `directory` and say what came of it. `planner` chooses the layout when the corpus is known."""
    from rich.console import Console

    from tenfold.launch.failures import noted
    from tenfold.train.parallel.processes import on_first_process, start_processes
    from tenfold.train.tasks.pretrain import pretrain
    from tenfold.train.text import open_text

    start_processes(config.health.hang_after_s)
    first = int(os.environ.get("RANK", "0")) == 0
    console = Console(stderr=options.json, quiet=not first)
    on_first_process(lambda: open_text(config, options.home) and None)  # the others find it made
    corpus = open_text(config, options.home, quiet=True)
    _explain(config, corpus.vocab_size, console)
    if planner is not None:
        config = planner(config, corpus.vocab_size)
    if options.started is None:
        with noted(directory):
            result = pretrain(config, corpus, directory, quiet=options.json)
    else:
        result = _on_several(config, directory, options, options.started)
    if not result.finished:
        raise TenfoldError(f"Stopped and saved at step {result.step}: `tenfold resume {directory}` goes on from there.")
    if not options.json:
        console.print(_summary(result), highlight=False)
    elif first:
        print_json(asdict(result))


def _on_several(config: RunConfig, directory: Path, options: RunOptions, processes: int) -> "RunResult":
    from tenfold.launch.job import Resources, open_launcher
    from tenfold.spec.threads import available_cores
    from tenfold.train.jobs import train_on

    cores = 0 if "OMP_NUM_THREADS" in os.environ else available_cores()
    needs = Resources(processes=processes, cores=cores)
    return train_on(open_launcher("local"), needs, config, directory, options.home, quiet=options.json)


def _explain(config: RunConfig, vocab_size: int, console: "Console") -> None:
    """Print what is trained, and what was derived with its reason."""
    from tenfold.spec.units import si
    from tenfold.train.resolve import resolve_hyperparameters, resolve_model

    spec, tokens = resolve_model(config, vocab_size)
    h, seq_len = resolve_hyperparameters(config, spec, tokens), config.data.seq_len
    console.print(
        f"{spec.name}: {spec.dim} wide, {spec.n_layers} layers, {si(spec.parameters().total, 'parameters')}; "
        f"{si(tokens, 'tokens')}, {si(tokens * spec.train_flops_per_token(seq_len), 'FLOPs')}, {h.steps} steps of "
        f"{h.batch_size} x {seq_len} tokens.",
        highlight=False,
    )
    for name, reason in h.reasons.items():
        console.print(f"  {name} = {getattr(h, name):.4g}: {reason}", highlight=False)


def _summary(result: "RunResult") -> str:
    from tenfold.spec.units import duration, si

    return (
        f"Validation: {result.bits_per_byte:.4f} bits per byte ({result.loss:.4f} nats per token). {duration(result.seconds)}, "
        f"{si(result.tokens_per_s, 'tokens/s')}, MFU {result.mfu:.0%}, {result.energy_kwh * 1000:.2f} Wh ({result.energy_source}), "
        f"peak memory {result.peak_memory_gib:.2f} GiB."
    )
