"""Fit scaling laws, back-test them on runs that they were not fitted to, and score forecasts."""

from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from tenfold.scale import documents
from tenfold.spec.commands import File, Folder, Json, print_json
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import write_json
from tenfold.spec.ranges import Flops

LABELS = {
    "loss_bits_per_byte": "loss (bits/byte)",
    "loss_nats": "loss (nats)",
    "tokens_per_s": "speed (tokens/s)",
    "seconds": "seconds (s)",
    "energy_kwh": "energy (kWh)",
}
DRAWN = (".png", ".svg", ".pdf")
Holdout = Annotated[float, Meta(gt=1)]
PointsFile = Annotated[
    File, Meta(description="CSV file with a row for each finished run: loss, and two or three of params, tokens and flops.")
]
Columns = Annotated[str, Meta(description="The file's own column names, for example params=n,tokens=d,flops=c,loss=l.")]
BitsPerByte = Annotated[bool, Meta(description="The loss is in bits per byte: use a prior of the lowest reachable loss of text.")]


class PointOptions(Struct, frozen=True):
    """How a file of finished runs is read."""

    columns: Columns = ""
    bits_per_byte: BitsPerByte = False

    @property
    def asymptote(self) -> Any:
        """The prior of the lowest loss, as `fit_law` takes it."""
        from tenfold.scale.law import BITS_PER_BYTE

        return BITS_PER_BYTE if self.bits_per_byte else None


class FitOptions(Struct, frozen=True):
    """What is fitted or forecast, and where the law is written."""

    total: Annotated[
        str | None,
        Meta(
            description="Column of total parameters, for models with experts: fit only how much the parameters count that a token "
            "does not use."
        ),
    ] = None
    flops: Annotated[
        Flops | None, Meta(description="Compute in FLOPs whose best run is forecast; default: ten times the largest in the file.")
    ] = None
    out: Annotated[File | None, Meta(description="Write the law to this JSON file.")] = None
    plot: Annotated[File | None, Meta(description="Draw the points and the law into this file (.png, .svg or .pdf).")] = None


def beside_lines(generation: Path) -> list[str]:
    """Lines that compare a generation with that of the other family and equal settings in its home; empty without one."""
    from tenfold.scale.beside import comparison, other_family

    other = other_family(generation)
    if other is None:
        return []
    found = comparison(generation, other)
    lines = [f"Experts ({found['experts']}) beside dense ({found['dense']}) at equal compute, bits per byte:"]
    for what in ("forecast", "measured"):
        difference = found[f"{what}_difference"]
        low, high = difference["interval_80"]
        lines.append(f"  {what} {difference['pct']:+.2f} % (80 %: {low:+.2f} to {high:+.2f} %)")
    return lines


def score_table(generation: Path, scored: dict[str, Any]) -> Any:
    """A table of a generation's forecast and its measured values."""
    from tenfold.spec.terminal import Figures

    forecast = documents.read(generation / "forecast.json")
    title = f"Forecast of {generation.name}, scored"
    table = Figures("", "forecast", "80 % interval", "measured", "error", "inside 80 %", title=title)
    for name, row in scored["scores"].items():
        low, high = forecast[name]["intervals"]["80"]
        table.add_row(
            LABELS[name], f"{row['forecast']:.4g}", f"{low:.4g} to {high:.4g}", f"{row['measured']:.4g}",
            f"{row['error_pct']:+.2f} %", "yes" if row["inside_80"] else "no",
        )  # fmt: skip
    machine = scored["machine"]
    if not machine["speed_is_comparable"]:
        table.caption = (
            f"Other processes used {machine['busy_in_probe']:.0%} of the machine when its speed was forecast, and "
            f"{machine['busy_in_run']:.0%} in the run: speed, seconds and energy cannot be compared."
        )
    return table


def score(generation: Annotated[Folder, Meta(description="A generation's directory.")], /, *, json: Json = False) -> None:
    """Compare a generation's forecast with its finished run. A forecast that was changed after the run began is refused.

    Example: tenfold score generations/g1
    """
    from tenfold.scale.forecast import score as score_forecast
    from tenfold.spec.terminal import console

    if not (generation / "forecast.json").exists():
        raise TenfoldError(f"{generation} is no generation, as it has no forecast.json: name a directory such as generations/g1.")
    scored = score_forecast(generation)
    if json:
        print_json(scored)
    else:
        console().print(score_table(generation, scored))


def fit(
    points: PointsFile, /, *, reading: PointOptions = PointOptions(), options: FitOptions = FitOptions(), json: Json = False
) -> None:
    """Fit the scaling law L(N, D) to finished runs, and forecast the best run of a larger compute.

    Example: tenfold law fit points.csv --columns params=n,tokens=d --flops 1e22
    """
    from tenfold.scale.fitted import as_json, fit_table, show
    from tenfold.scale.points import parse_columns, read_points

    if options.total is not None:
        _refuse_with_total(reading, options)
        _fit_sparsity(points, parse_columns(reading.columns), options.total, json)
        return
    if options.plot is not None and options.plot.suffix not in DRAWN:
        raise TenfoldError(f"--plot must end in {' or '.join(DRAWN)}, not {str(options.plot)!r}.")
    rows, unusable = read_points(points, parse_columns(reading.columns))
    found = fit_table(rows, unusable, reading.asymptote, options.flops)
    if options.out:
        write_json(options.out, found.law.to_dict())
    if options.plot:
        from tenfold.scale.plots import draw_law

        draw_law(rows, found.law, options.plot)
    if json:
        print_json(as_json(found, unusable))
    else:
        show(found)


def _refuse_with_total(reading: PointOptions, options: FitOptions) -> None:
    """Raises TenfoldError for options that have no effect beside --total."""
    given = {
        "--bits-per-byte": reading.bits_per_byte,
        "--flops": options.flops is not None,
        "--out": options.out is not None,
        "--plot": options.plot is not None,
    }
    unused = [name for name, is_given in given.items() if is_given]
    if unused:
        raise TenfoldError(
            f"--total fits only how much idle parameters count, without {' and '.join(unused)}: leave out either --total or "
            f"{'that option' if len(unused) == 1 else 'those options'}."
        )


def _fit_sparsity(points: Path, columns: dict[str, str], total: str, json: bool) -> None:
    from tenfold.scale.points import read_points
    from tenfold.scale.sparsity import fit_sparsity

    active, whole = read_points(points, columns)[0], read_points(points, {**columns, "params": total})[0]
    if len(active) != len(whole):
        raise TenfoldError(f"{points} has rows without a number in {total!r}: give the total parameters of every run.")
    found = fit_sparsity(active, [p.params for p in whole])
    if json:
        print_json({"points": len(active), "gamma": found.gamma, "interval_80": found.interval_80, "noise": found.law.noise})
        return
    low, high = found.interval_80
    print(
        f"A model of N active and M total parameters counts as a dense one of N (M/N)^{found.gamma:.2f} (80 %: {low:.2f} to "
        f"{high:.2f}); {len(active)} points, noise {found.law.noise:.2%}."
    )


def backtest(
    points: PointsFile,
    /,
    *,
    holdout: Annotated[
        Holdout, Meta(description="Hide the points above 1/HOLDOUT of the largest compute, and forecast them.")
    ] = 10.0,
    reading: PointOptions = PointOptions(),
    json: Json = False,
) -> None:
    """Fit a law without the largest runs, forecast them, and count how often the intervals contain the measured loss.

    Example: tenfold law backtest points.csv --holdout 10 --columns params=n,tokens=d,flops=c,loss=l
    """
    from tenfold.scale.backtest import backtest as hide_and_predict
    from tenfold.scale.backtest import rung_by_rung
    from tenfold.scale.points import parse_columns, read_points
    from tenfold.spec.terminal import Figures, console

    found, unusable = read_points(points, parse_columns(reading.columns))
    result = hide_and_predict(found, holdout, asymptote=reading.asymptote)
    rungs = rung_by_rung(found, asymptote=reading.asymptote) if len({round(p.flops, -1) for p in found}) <= 40 else []
    if json:
        print_json({**result.to_dict(), "unusable_rows": len(unusable), "rungs": [r.summary() for r in rungs]})
        return
    table = Figures("", "fitted up to", "points", "hidden", "mean error", "worst", "largest run", "in 50 %", "80 %", "95 %")
    for name, test in [(f"x{holdout:g}", result), *((f"rung {i + 1}", rung) for i, rung in enumerate(rungs))]:
        s = test.summary()
        table.add_row(
            name, f"{s['fitted_up_to_flops']:.2g}", str(s["fitted_points"]), str(s["held_out_points"]),
            f"{s['mean_abs_error_pct']:.2f} %", f"{s['worst_error_pct']:+.2f} %", f"{s['largest_run_error_pct']:+.2f} %",
            *(f"{s[f'inside_{level}']:.0%}" for level in (50, 80, 95)),
        )  # fmt: skip
    console().print(table)
