"""Train a model as a run file says, and go on with a run that was stopped."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from tenfold.spec.commands import Given, Json, print_json
from tenfold.spec.errors import TenfoldError
from tenfold.spec.plugins import load
from tenfold.train.config import RunConfig, read_config

if TYPE_CHECKING:
    from rich.console import Console

    from tenfold.train.trainer import RunResult


class RunOptions(Struct, frozen=True):
    """Where a run is kept, and the processes that train it."""

    out: Annotated[Path | None, Meta(description="The run's directory; by default generations/NAME of the run file.")] = None
    home: Annotated[Path, Meta(description="Where corpora and runs are kept.")] = Path("generations")
    launch: Annotated[str | None, Meta(description="local:N starts N processes here, and again when some are lost.")] = None
    json: Json = False

    @property
    def processes(self) -> int | None:
        """How many processes this one starts; None where it trains itself."""
        if self.launch is None:
            return None
        where, _, number = self.launch.partition(":")
        if where != "local" or not number.isdecimal() or int(number) < 1:
            raise TenfoldError(f"--launch takes local:N, such as local:8, not {self.launch!r}; for a cluster use `tenfold launch`.")
        return int(number)


class DryRunOptions(Struct, frozen=True):
    """Whether a run is only reckoned through, and for which machines."""

    dry_run: Annotated[bool, Meta(description="Say what each process would hold and send, and end.")] = False
    world: Annotated[int | None, Meta(description="The number of processes of a dry run.", ge=1)] = None
    machine: Annotated[str, Meta(description="The accelerator that the planner's figures beside a dry run are for.")] = "h100"


def train(
    config: Annotated[Path | None, Meta(description="A run file; without one, the options must say at least --flops.")] = None,
    /,
    *,
    options: RunOptions = RunOptions(),
    reckon: DryRunOptions = DryRunOptions(),
    changes: Given[RunConfig],
) -> None:
    """Train one model as a run file says; everything left out is derived from the compute and printed with its reason.

    Every key of the run file is an option too, and takes its place: `--optimizer.learning-rate` is `learning_rate` in the table
    `[optimizer]`.

    Examples:

      tenfold train --flops 1e12

      echo 'flops = 1e12' > run.toml && tenfold train run.toml --seq-len 256

      tenfold train run.toml --launch local:8

      torchrun --nproc-per-node 8 -m tenfold train run.toml

      tenfold train run.toml --dry-run --world 16384
    """
    run = read_config(config, changes)
    if reckon.dry_run != (reckon.world is not None):
        raise TenfoldError("A dry run needs both --dry-run and --world N, the number of processes.")
    if reckon.world is not None:
        load("commands", "train.dry-run")(run, world=reckon.world, machine=reckon.machine, json=options.json)
        return
    _run(run, options.out or options.home / (config.stem if config else "run"), options)


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
    from tenfold.train.trainer import read_result

    if not (generation / "run.toml").exists():
        raise TenfoldError(f"{generation} is no run: it has no run.toml.")
    if read_result(generation) is not None:
        raise TenfoldError(f"The run in {generation} has finished; there is nothing to resume.")
    _run(read_config(generation / "run.toml"), generation, RunOptions(home=home or generation.parent, json=json))


def _run(config: RunConfig, directory: Path, options: RunOptions) -> None:
    from rich.console import Console

    from tenfold.launch.elastic import train_here
    from tenfold.train.checkpoint import on_first_process
    from tenfold.train.parallel.parallelize import start_processes
    from tenfold.train.text import open_text
    from tenfold.train.trainer import train as train_run

    processes = options.processes
    start_processes()
    first = int(os.environ.get("RANK", "0")) == 0
    console = Console(stderr=options.json, quiet=not first)
    on_first_process(lambda: open_text(config, options.home) and None)  # the others find it made
    corpus = open_text(config, options.home, quiet=True)
    config = _announced(config, corpus.vocab_size, processes or int(os.environ.get("WORLD_SIZE", "1")), console)
    if processes is None:
        result = train_run(config, corpus, directory, title=directory.name, quiet=options.json)
    else:
        result = train_here(config, directory, options.home, processes, quiet=options.json)
    if not result.finished:
        raise TenfoldError(f"Stopped and saved at step {result.step}: `tenfold resume {directory}` goes on from there.")
    if not options.json:
        console.print(_summary(result), highlight=False)
    elif first:
        print_json(asdict(result))


def _announced(config: RunConfig, vocab_size: int, world: int, console: "Console") -> RunConfig:
    """`config` with a layout for `world` processes, after printing what is trained and why so."""
    from tenfold.spec.units import si
    from tenfold.train.config import resolve_model
    from tenfold.train.optim.hyperparameters import derive
    from tenfold.train.precision import this_accelerator

    spec, tokens = resolve_model(config, vocab_size)
    h = derive(
        spec, tokens, config.seq_len, batch_size=config.batch_size, learning_rate=config.learning_rate,
        weight_decay=config.weight_decay, beta2=config.beta2,
    )  # fmt: skip
    name = this_accelerator()
    if config.layout.auto and world > 1 and name is not None:
        config = load("commands", "train.layout")(config, world=world, machine=name)
    flops = tokens * spec.train_flops_per_token(config.seq_len)
    console.print(
        f"{spec.name}: {spec.dim} wide, {spec.n_layers} layers, {si(spec.parameters().total, 'parameters')}; "
        f"{si(tokens, 'tokens')}, {si(flops, 'FLOPs')}, {h.steps} steps of {h.batch_size} x {config.seq_len} tokens.",
        highlight=False,
    )
    for name, reason in h.reasons.items():
        console.print(f"  {name} = {getattr(h, name):.4g}: {reason}", highlight=False)
    return config


def _summary(result: "RunResult") -> str:
    from tenfold.spec.units import duration, si

    return (
        f"Validation: {result.bits_per_byte:.4f} bits per byte ({result.loss:.4f} nats per token). {duration(result.seconds)}, "
        f"{si(result.tokens_per_s, 'tokens/s')}, MFU {result.mfu:.0%}, {result.energy_kwh * 1000:.2f} Wh ({result.energy_source}), "
        f"peak memory {result.peak_memory_gib:.2f} GiB."
    )
