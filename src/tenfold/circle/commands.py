"""Commands that use several rooms (packages such as `train`, `plan`, `serve`): `climb`, which also samples from the model, `train`
with the planner's layout, a dry run beside the planner's figures, the circle, and the record of forecasts."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, structs, to_builtins

from tenfold.circle.walk import CircleSettings, walk
from tenfold.scale import documents
from tenfold.scale.options import ClimbSettings
from tenfold.spec.commands import File, Given, Home, Json, print_json
from tenfold.spec.errors import TenfoldError, when_stopped
from tenfold.spec.ranges import Text
from tenfold.train.commands import RunOptions
from tenfold.train.commands import run as run_training
from tenfold.train.config import RunConfig
from tenfold.train.run_file import read_config

RunFile = Annotated[File, Meta(description="A run file (TOML).")]
World = Annotated[int, Meta(description="The number of processes, one for each accelerator.", ge=1, le=2**24)]
MachineName = Annotated[Text, Meta(description="The accelerator of each process, as the planner names it, such as h100.")]


def climb(
    *,
    settings: ClimbSettings = ClimbSettings(),
    home: Home = Path("generations"),
    on: Annotated[
        Literal["ray"] | None, Meta(description="Train the rungs as Ray tasks, on the cluster at RAY_ADDRESS or on this machine.")
    ] = None,
    again: Annotated[bool, Meta(description="Climb on from the newest generation in the home, to ten times its compute.")] = False,
    json: Json = False,
) -> None:
    """Train a ladder of small models, forecast a model of ten times their compute, train that one, and score the forecast.

    Examples:

      tenfold climb

      tenfold climb --corpus ~/texts --top 1e15 --device cuda

      tenfold climb --family llama4        # after a dense climb in the same home: also compares the two

      tenfold climb --task rank --corpus interactions.parquet --seq-len 50 --top 1e13

      tenfold climb --again
    """
    from tenfold.scale import climb as climbing
    from tenfold.scale.commands import beside_lines, score_table
    from tenfold.scale.generations import prompt_of, read_settings
    from tenfold.scale.report import write_report
    from tenfold.serve.complete import complete
    from tenfold.spec.terminal import console

    out = console(stderr=json)
    home = home.resolve() if on else home  # Ray tasks run in other working directories

    with when_stopped("the same command goes on from what had finished"):
        if again:
            generation = climbing.again(home, say=out.print, quiet=json, on=on)
        else:
            generation = climbing.climb(settings, home, say=out.print, quiet=json, on=on)
    scored = documents.read(generation / "score.json")
    if not read_settings(generation).is_text:
        if json:
            print_json({"generation": str(generation), **scored})
        else:
            out.print(score_table(generation, scored))
        return
    prompt = prompt_of(generation)
    text = complete(generation / "model", prompt, max_new_tokens=160, temperature=0.7, top_p=0.95, seed=0).text
    report = write_report(generation, sample=text)
    if json:
        print_json({"generation": str(generation), "report": str(report), **scored, "sample": text})
        return
    out.print(score_table(generation, scored))
    for line in beside_lines(generation):
        out.print(line)
    out.print(f"\nWhat it writes after {prompt!r}:\n")
    out.print(text)
    out.print(f"\nReport: {report}")


class DryRunOptions(Struct, frozen=True):
    """Whether the run is only simulated with fake tensors (a dry run), and for which machines."""

    dry_run: Annotated[bool, Meta(description="Train nothing: print the memory and traffic (GiB) of each process.")] = False
    world: Annotated[World | None, Meta(description="The number of processes of a dry run.")] = None
    machine: Annotated[Text, Meta(description="The accelerator for which a dry run shows the planner's figures.")] = "h100"


def train(
    config: Annotated[File | None, Meta(description="A run file (TOML); without one, give at least --flops.")] = None,
    /,
    *,
    options: RunOptions = RunOptions(),
    reckon: DryRunOptions = DryRunOptions(),
    changes: Given[RunConfig],
) -> None:
    """Train one model as a run file says; everything left out is derived from the compute and printed with its reason.

    Every key of the run file is also an option, which overrides it: `--optimizer.learning-rate` is `learning_rate` in the table
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
        from tenfold.train.device import this_accelerator

        sheet = this_accelerator(run.device)
        return with_layout(run, options.world, sheet.key if sheet else None, vocab_size)

    from tenfold.train.resolve import with_own_law

    directory = options.out or options.home / (config.stem if config else "run")
    run_training(with_own_law(read_config(config, changes), options.home, directory), directory, options, planned)


def dry_run(
    run: RunFile | None = None, /, *, world: World, machine: MachineName = "h100", changes: Given[RunConfig], json: Json = False
) -> None:
    """Show the memory and traffic of each process of a run, from a simulation without accelerators, beside the planner's figures.

    Example: tenfold train dry-run run.toml --world 16384 --machine h100
    """
    from tenfold.circle.dry_run import beside_the_plan, print_dry_run
    from tenfold.circle.layout import with_layout
    from tenfold.train.dry_run import dry_run as fake_run

    config = with_layout(read_config(run, changes), world, machine)
    found = fake_run(config, world)
    plan = beside_the_plan(found, machine)
    if json:
        print_json({**asdict(found), "layout": structs.asdict(found.layout), **plan})
    else:
        print_dry_run(found, plan)


def layout(
    run: RunFile | None = None, /, *, world: World, machine: MachineName = "h100", changes: Given[RunConfig], json: Json = False
) -> None:
    """Print the planner's fastest layout that the trainer can build, in the form of a run file.

    Example: tenfold train layout run.toml --world 256 --machine h100
    """
    import tomli_w

    from tenfold.circle.layout import with_layout
    from tenfold.train.run_file import ELSEWHERE
    from tenfold.train.start import layout_of

    config = with_layout(read_config(run, changes | {"parallel": "auto"}), world, machine)
    parallel = structs.asdict(layout_of(config)).items()
    batch = {"batch_size": config.data.batch_size} if config.data.batch_size else {}
    chosen = {"data": batch, "parallel": {k: v for k, v in parallel if k not in ELSEWHERE}}
    if json:
        print_json(chosen)
    else:
        print(tomli_w.dumps(chosen), end="")


def circle(
    *,
    settings: CircleSettings = CircleSettings(),
    home: Home = Path("generations"),
    again: Annotated[bool, Meta(description="Begin the next circle, at ten times the compute, once the last one is done.")] = False,
    json: Json = False,
) -> None:
    """Run the whole loop once in one home: climb, plan, sites, learn, rank, fleet.

    A circle that was stopped goes on from where it was. TENFOLD_CIRCLE=small in the environment makes the runs smaller.

    Examples:

      tenfold circle --home generations

      tenfold circle --home generations --again

      tenfold circle --home others --corpus ~/texts --seed 1
    """
    from tenfold.spec.terminal import console

    out = console(stderr=json)
    with when_stopped("the same command goes on from what had finished"):
        found = walk(home, out.print, settings, again)
    if json:
        print_json(found)
    else:
        out.print(f"See it: tenfold console --home {home}")


def forecasts(*, home: Home = Path("generations"), json: Json = False) -> None:
    """List every forecast made in a home, its outcome, and whether its interval held.

    `width` is the factor by which the outcomes of earlier forecasts of the same kind widened its interval (below 1: narrowed).

    Example: tenfold forecasts --home generations
    """
    from tenfold.spec.forecasts import LEVELS, read_forecasts
    from tenfold.spec.terminal import Figures, console

    found = read_forecasts(home)
    scored = [one for one in found if one.measured is not None]
    if json:
        scores = [{k: getattr(one, k) for k in ("measured", "came", "inside_80", "crps")} for one in found]
        rows = [to_builtins(one.forecast) | score for one, score in zip(found, scores, strict=True)]
        print_json({"levels": LEVELS, "forecasts": rows})
        return
    if not found:
        raise TenfoldError(f"No forecast was made in {home} yet: `tenfold climb` makes some.")
    table = Figures("forecast", "unit", "median", "80 % interval", "width", "measured", "inside")
    for one in found:
        q = dict(zip(LEVELS, one.forecast.quantiles, strict=True))
        came = ("", "") if one.measured is None else (f"{one.measured:.4g}", "yes" if one.inside_80 else "no")
        learnt = one.forecast.learnt
        width = f"{learnt.factor:.2f}" if learnt and learnt.outcomes else ""
        table.add_row(one.forecast.key, one.forecast.unit, f"{q[0.5]:.4g}", f"{q[0.1]:.4g} to {q[0.9]:.4g}", width, *came)
    out = console()
    out.print(table)
    inside = sum(bool(one.inside_80) for one in scored)
    out.print(f"{len(found)} forecasts, {len(scored)} with an outcome; the 80 % interval held in {inside}.")


def record_outcome(
    key: Annotated[Text, Meta(description="The forecast's key, as `tenfold forecasts` lists it.")],
    measured: Annotated[float, Meta(description="The measured outcome, in the forecast's unit.")],
    /,
    *,
    home: Home = Path("generations"),
) -> None:
    """Record the outcome of a forecast. It can be recorded once and is never changed.

    Example: tenfold forecasts outcome plan/3f9c1a2b4d5e/seconds 7.2e6
    """
    from tenfold.spec.forecasts import outcome

    scored = outcome(home, key, measured)
    print(f"{key}: {measured:g} {scored.forecast.unit}, {'inside' if scored.inside_80 else 'outside'} its 80 % interval.")
