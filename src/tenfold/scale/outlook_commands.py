"""Look beyond a ladder: a test for a bend of its law, the value of the next generations, and the loss along a run."""

from dataclasses import asdict
from typing import Annotated, Any

from msgspec import Meta, Struct

from tenfold.scale.commands import BitsPerByte, Columns, PointOptions, PointsFile
from tenfold.spec.commands import File, Json, print_json
from tenfold.spec.ranges import Positive, Share

Percent = Annotated[float, Meta(gt=0, le=100)]
BendPercent = Annotated[
    Percent, Meta(description="Size of a bend: by how many percent the loss lies above the law after ten times more compute.")
]
WorthFile = Annotated[File, Meta(description="CSV file with the columns loss and value: how much a model of that loss is worth.")]


class Ahead(Struct, frozen=True):
    """How many generations are forecast, and how likely a bend of the law is assumed to be."""

    generations: Annotated[int, Meta(ge=1, le=6, description="Generations, each with ten times the compute of the one before.")] = 3
    bend_chance: Annotated[
        Share, Meta(description="Probability (0 to 1) that the loss bends upwards from the largest compute of the points on.")
    ] = 0.0
    bend: BendPercent = 3.0


def limit(points: PointsFile, /, *, bend: BendPercent = 3.0, columns: Columns = "", json: Json = False) -> None:
    """Test whether a law holds or bends upwards, and find the cheapest next rung that would show a bend.

    Example: tenfold law limit points.csv --bend 3
    """
    from tenfold.scale.limit import limit_test
    from tenfold.scale.next_rung import cheapest, next_rungs
    from tenfold.scale.points import parse_columns, read_points

    rows, unusable = read_points(points, parse_columns(columns))
    found = limit_test(rows, asked=bend / 100)
    rungs = next_rungs(rows, bend=found.asked, noise=found.noise)
    best = cheapest(rungs)
    if json:
        listed = {"next_rungs": [rung.to_dict() for rung in rungs], "cheapest": best and best.to_dict()}
        print_json({**found.to_dict(), "unusable_rows": len(unusable), **listed})
    else:
        _show_test(found)
        _show_rung(found.asked, best)


def _show_test(found: Any) -> None:
    from tenfold.spec.terminal import console

    out, bend = console(), found.bend
    (low, high), (first, last) = bend.intervals[80], bend.begins_80
    out.print(
        f"{found.verdict} Where a law holds, noise alone produces as clear a bend with a probability of {found.p:.2g}, noise "
        f"together with the usual misfit of laws with {found.p_misfit:.2g}."
    )
    out.print(
        f"The likeliest bend: {bend.size:+.1%} of the loss per decade of compute (80 %: {low:+.1%} to {high:+.1%}), from "
        f"{bend.begins:.2g} FLOPs on (80 %: {first:.2g} to {last:.2g}); {found.points} points, noise {found.noise:.2%}."
    )
    smallest = (
        f"the smallest that they show with a probability of 80 % is {found.smallest:.1%}"
        if found.smallest
        else "they show none that less than doubles the loss with a probability of 80 %"
    )
    out.print(
        f"These points show a bend of {found.asked:.1%} that begins a decade below the largest compute with a probability of "
        f"{found.power:.0%}; {smallest}."
    )


def _show_rung(bend: float, best: Any) -> None:
    from tenfold.spec.terminal import console

    if best is None:
        console().print(f"No next rung of up to 30 times that compute shows a bend of {bend:.1%} with a probability of 80 %.")
        return
    console().print(
        f"The cheapest next rung that shows a bend of {bend:.1%} from the largest compute on: {best.runs} "
        f"run{'s' * (best.runs > 1)} of {best.flops:.2g} FLOPs ({best.params:.3g} parameters, {best.tokens:.3g} tokens), "
        f"{best.cost:.2g} FLOPs in all, with a probability of {best.power:.0%}."
    )


def worth(
    points: PointsFile,
    table: WorthFile,
    /,
    *,
    step: Annotated[
        Positive, Meta(description="Gain over the generation before whose probability is wanted, in the unit of the value column.")
    ],
    ahead: Ahead = Ahead(),
    reading: PointOptions = PointOptions(),
    json: Json = False,
) -> None:
    """Forecast the value of the next generations, and the probability that each gains --step or more over the one before.

    Example: tenfold law worth points.csv accuracy.csv --step 5
    """
    from tenfold.scale.law import fit_law
    from tenfold.scale.points import parse_columns, read_points
    from tenfold.scale.worth import Bending, next_generations, read_worth

    law = fit_law(read_points(points, parse_columns(reading.columns))[0], asymptote=reading.asymptote)
    bending, known = Bending(ahead.bend_chance, ahead.bend / 100), read_worth(table)
    found = next_generations(law, known, generations=ahead.generations, bending=bending)
    if json:
        print_json(found.to_dict(step))
    else:
        _show_worth(found, step)


def _show_worth(found: Any, step: float) -> None:
    from tenfold.spec.terminal import Figures, console

    table = Figures("generation", "FLOPs", "loss", "80 %", "value", "80 %", f"+{step:g} or more", title="What comes next")
    for k, row in enumerate(found.to_dict(step)["generations"]):
        loss, value, chance = row["loss"], row["value"], row["chance"]
        table.add_row(
            f"+{k}", f"{row['flops']:.2g}", f"{loss['median']:.4g}", "{:.4g} to {:.4g}".format(*loss["interval_80"]),
            f"{value['median']:.4g}", "{:.4g} to {:.4g}".format(*value["interval_80"]), "" if chance is None else f"{chance:.0%}",
        )  # fmt: skip
    console().print(table)


def trajectory(
    curves: Annotated[
        File, Meta(description="CSV file with the columns run, params, tokens (so far) and loss, and a row for each checkpoint.")
    ],
    /,
    *,
    params: Annotated[Positive, Meta(description="Parameters of the run to forecast.")],
    tokens: Annotated[Positive, Meta(description="Training tokens of the run to forecast.")],
    bits_per_byte: BitsPerByte = False,
    json: Json = False,
) -> None:
    """Forecast the loss along a run, with intervals, from finished runs with the same learning rate schedule.

    Example: tenfold law trajectory curves.csv --params 7e9 --tokens 1e11
    """
    from tenfold.scale.trajectory import forecast_trajectory, read_curves
    from tenfold.spec.terminal import Figures, console

    reading = PointOptions(bits_per_byte=bits_per_byte)
    found = forecast_trajectory(read_curves(curves), params, tokens, asymptote=reading.asymptote)
    if json:
        print_json({"params": params, "tokens": tokens, "moments": [asdict(moment) for moment in found]})
        return
    table = Figures("of the run", "tokens", "loss", "80 %", "95 %", title=f"{params:.3g} parameters, {tokens:.3g} tokens")
    for moment in found:
        name, done = (f"{moment.share:.0%}", f"{moment.share * tokens:.3g}") if moment.share else ("mean of the last tenth", "")
        ends = ("{:.4g} to {:.4g}".format(*moment.intervals[level]) for level in (80, 95))
        table.add_row(name, done, f"{moment.median:.4g}", *ends)
    console().print(table)
