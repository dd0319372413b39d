"""What needs the planner and the trainer together: to train in the planner's layout, and to compare their figures."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct, structs

from tenfold.spec.commands import Given, Json, print_json
from tenfold.spec.errors import TenfoldError
from tenfold.train.commands import RunOptions
from tenfold.train.commands import run as run_training
from tenfold.train.config import RunConfig, read_config

RunFile = Annotated[Path, Meta(description="A run file.")]
World = Annotated[int, Meta(description="The number of processes.", ge=1)]
MachineName = Annotated[str, Meta(description="The accelerator of each process, as the planner names it.")]


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

      echo 'flops = 1e12' > run.toml && tenfold train run.toml --data.seq-len 256

      tenfold train run.toml --launch local:8

      torchrun --nproc-per-node 8 -m tenfold train run.toml

      tenfold train run.toml --dry-run --world 16384
    """
    if reckon.dry_run != (reckon.world is not None):
        raise TenfoldError("A dry run needs both --dry-run and --world N, the number of processes.")
    if reckon.world is not None:
        dry_run(config, world=reckon.world, machine=reckon.machine, changes=changes, json=options.json)
        return

    def planned(run: RunConfig, vocab_size: int) -> RunConfig:
        from tenfold.circle.layout import with_layout
        from tenfold.train.precision import this_accelerator

        return with_layout(run, options.world, this_accelerator(), vocab_size)

    run_training(read_config(config, changes), options.out or options.home / (config.stem if config else "run"), options, planned)


def dry_run(
    run: RunFile | None = None, /, *, world: World, machine: MachineName = "h100", changes: Given[RunConfig], json: Json = False
) -> None:
    """What each process of a run would hold and send, found with fake processes, beside the planner's figures.

    Example: tenfold train dry-run run.toml --world 16384 --machine h100
    """
    from tenfold.circle.dry_run import beside_the_plan, print_dry_run
    from tenfold.circle.layout import with_layout
    from tenfold.train.dry_run import dry_run as fake_run

    config = with_layout(read_config(run, changes), world, machine)
    found = fake_run(config, world)
    plan = beside_the_plan(found, machine)
    if json:
        print_json({**asdict(found), **plan})
    else:
        print_dry_run(found, plan)


def layout(
    run: RunFile | None = None, /, *, world: World, machine: MachineName = "h100", changes: Given[RunConfig], json: Json = False
) -> None:
    """The planner's fastest layout that the trainer can build, as it is written in a run file.

    Example: tenfold train layout run.toml --world 256 --machine h100
    """
    import tomli_w

    from tenfold.circle.layout import with_layout
    from tenfold.train.config import ELSEWHERE
    from tenfold.train.start import layout_of

    config = with_layout(read_config(run, changes | {"parallel": "auto"}), world, machine)
    parallel = structs.asdict(layout_of(config)).items()
    batch = {"batch_size": config.data.batch_size} if config.data.batch_size else {}
    chosen = {"data": batch, "parallel": {k: v for k, v in parallel if k not in ELSEWHERE}}
    if json:
        print_json(chosen)
    else:
        print(tomli_w.dumps(chosen), end="")
