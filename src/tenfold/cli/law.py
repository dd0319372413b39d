"""`tenfold law`: fit a scaling law to measured points, and test it on the points that it has not seen."""

from pathlib import Path
from typing import Annotated

import typer

from tenfold.cli import AsJson, app, print_json

law_app = typer.Typer(help="Fit scaling laws and back-test them.", no_args_is_help=True)
app.add_typer(law_app, name="law")

BitsPerByte = Annotated[
    bool, typer.Option("--bits-per-byte", help="Losses are in bits per byte: what is known of their lowest value is used.")
]
Columns = Annotated[str, typer.Option(help="Column names, as params=n,tokens=d,flops=c,loss=l.")]


@law_app.command("fit")
def fit(
    points: Annotated[Path, typer.Argument(help="A CSV file with params, tokens and/or flops, and loss.")],
    columns: Columns = "",
    bits_per_byte: BitsPerByte = False,
    total: Annotated[
        str | None, typer.Option(help="A column of total parameters, where models have experts: fits what idle ones count.")
    ] = None,
    flops: Annotated[float | None, typer.Option(help="Also forecast the best run of this compute.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the law as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the points and the law.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit L(N, D) to measured points.

    Example: tenfold law fit points.csv --columns params=n,tokens=d --flops 1e22
    """
    import json

    from rich.console import Console
    from rich.table import Table

    from tenfold.scale.law import BITS_PER_BYTE, classic_fit, fit_law
    from tenfold.scale.points import parse_columns, read_points

    found, unusable = read_points(points, parse_columns(columns))
    if total is not None:
        _fit_sparsity(points, columns, total, as_json)
        return
    law = fit_law(found, asymptote=BITS_PER_BYTE if bits_per_byte else None)
    classic = classic_fit(found)
    target = flops or 10 * law.largest_flops
    n, d, _ = law.optimum(target)
    n0, _, _ = law.optimum(law.largest_flops)
    forecast = law.predict(n, d)
    if out:
        out.write_text(json.dumps(law.to_dict()))
    if plot:
        from tenfold.scale.plots import draw_law

        draw_law(found, law, plot)
    if as_json:
        print_json(
            {
                "points": len(found),
                "unusable_rows": unusable,
                "classic": classic,
                "coefficients": {k: {"value": v, "standard_error": s} for k, (v, s) in law.coefficients().items()},
                "members": [{"form": m.form, "compute_weight": m.compute_weight, "weight": m.weight} for m in law.members],
                "noise": law.noise,
                "flops": target,
                "params": n,
                "tokens": d,
                "loss": forecast.median,
                "intervals": forecast.intervals,
            }
        )
        return
    console = Console()
    table = Table("", "E", "A", "B", "alpha", "beta", title=f"L(N, D) = E + A/N^alpha + B/D^beta, {len(found)} points")
    table.add_row("plain refit", *(f"{classic[k]:.4g}" for k in ("E", "A", "B", "alpha", "beta")))
    table.add_row("weighted", *(f"{v:.4g} ± {s:.2g}" for v, s in (law.coefficients()[k] for k in ("E", "A", "B", "alpha", "beta"))))
    console.print(table)
    import math

    exponent = math.log(n / n0) / math.log(target / law.largest_flops)
    low, high = forecast.intervals[80]
    console.print(f"N* grows as C^{exponent:.2f}, D* as C^{1 - exponent:.2f}.")
    console.print(
        f"At {target:.3g} FLOPs: {n:.3g} parameters, {d:.3g} tokens, loss {forecast.median:.4f} (80 %: {low:.4f} to {high:.4f})."
    )
    if unusable:
        console.print(f"{unusable} rows could not be used.")


def _fit_sparsity(points: Path, columns: str, total: str, as_json: bool) -> None:
    from tenfold.scale.points import parse_columns, read_points
    from tenfold.scale.sparsity import fit_sparsity
    from tenfold.spec.errors import TenfoldError

    named = parse_columns(columns)
    active, whole = read_points(points, named)[0], read_points(points, {**named, "params": total})[0]
    if len(active) != len(whole):
        raise TenfoldError(f"{points} has rows without a number in {total!r}: give the total parameters of every run.")
    found = fit_sparsity(active, [p.params for p in whole])
    if as_json:
        print_json({"points": len(active), "gamma": found.gamma, "interval_80": found.interval_80, "noise": found.law.noise})
        return
    low, high = found.interval_80
    print(
        f"A model of N active and M total parameters counts as a dense one of N (M/N)^{found.gamma:.2f} (80 %: {low:.2f} to "
        f"{high:.2f}), {len(active)} points, which the law leaves {found.law.noise:.2%} apart."
    )


@law_app.command("backtest")
def backtest(
    points: Annotated[Path, typer.Argument(help="A CSV file with params, tokens and/or flops, and loss.")],
    holdout: Annotated[float, typer.Option(help="Hide all points above 1/HOLDOUT of the largest compute.")] = 10.0,
    columns: Columns = "",
    bits_per_byte: BitsPerByte = False,
    as_json: AsJson = False,
) -> None:
    """Hide the largest runs, forecast them, and count how often the intervals held.

    Example: tenfold law backtest points.csv --holdout 10 --columns params=n,tokens=d,flops=c,loss=l
    """
    from rich.console import Console
    from rich.table import Table

    from tenfold.scale.backtest import backtest as hide_and_predict
    from tenfold.scale.backtest import rung_by_rung
    from tenfold.scale.law import BITS_PER_BYTE
    from tenfold.scale.points import parse_columns, read_points

    found, unusable = read_points(points, parse_columns(columns))
    asymptote = BITS_PER_BYTE if bits_per_byte else None
    result = hide_and_predict(found, holdout, asymptote=asymptote)
    rungs = rung_by_rung(found, asymptote=asymptote) if len({round(p.flops, -1) for p in found}) <= 40 else []
    if as_json:
        print_json({**result.to_dict(), "unusable_rows": unusable, "rungs": [r.summary() for r in rungs]})
        return
    table = Table("", "fitted up to", "points", "hidden", "mean error", "worst", "largest run", "in 50 %", "80 %", "95 %")
    for name, test in [(f"x{holdout:g}", result), *((f"rung {i + 1}", rung) for i, rung in enumerate(rungs))]:
        s = test.summary()
        table.add_row(
            name,
            f"{s['fitted_up_to_flops']:.2g}",
            str(s["fitted_points"]),
            str(s["held_out_points"]),
            f"{s['mean_abs_error_pct']:.2f} %",
            f"{s['worst_error_pct']:+.2f} %",
            f"{s['largest_run_error_pct']:+.2f} %",
            *(f"{s[f'inside_{level}']:.0%}" for level in (50, 80, 95)),
        )
    Console().print(table)
