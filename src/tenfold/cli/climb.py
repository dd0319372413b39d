"""`tenfold climb`, `tenfold score`, `tenfold generations`: forecast the next generation, train it, score the forecast."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tenfold.cli import AsJson, app, print_json

Home = Annotated[Path, typer.Option(help="Where the generations are kept.")]


@app.command("climb")
def climb(
    corpus: Annotated[str, typer.Option(help="A folder or file of text, or stdlib, torch-headers, docstrings.")] = "stdlib",
    top: Annotated[str, typer.Option(help="FLOPs of the model at the top, the one that is forecast.")] = "5e12",
    vocab_size: Annotated[int, typer.Option(help="Tokens in the vocabulary.")] = 2048,
    seq_len: Annotated[int, typer.Option(help="Tokens in a sequence.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of weights and data order.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    optimizer: Annotated[str, typer.Option(help="muon or adamw.")] = "muon",
    family: Annotated[str, typer.Option(help="llama3 (dense) or llama4 (16 experts, one a token).")] = "llama3",
    home: Home = Path("generations"),
    on: Annotated[str | None, typer.Option(help="ray: the rungs as tasks of the cluster at RAY_ADDRESS, or here.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Climb on from the newest generation, to ten times its compute.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a ladder, forecast ten times its compute, train that, and score the forecast.

    Examples:

      tenfold climb

      tenfold climb --corpus ~/texts --top 1e15 --device cuda

      tenfold climb --family llama4        (after a dense climb in the same home: also compares the two)

      tenfold climb --again
    """
    from rich.console import Console

    from tenfold.scale import climb as climbing
    from tenfold.scale.report import write_report
    from tenfold.spec.errors import TenfoldError
    from tenfold.spec.units import parse_quantity

    console = Console(stderr=as_json)
    if on not in (None, "ray"):
        raise TenfoldError(f"There is no way to climb on {on!r}: say --on ray, or leave it out.")
    home = home.resolve() if on else home  # the tasks run in other folders

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    if again:
        generation = climbing.again(home, say=say, quiet=as_json, on=on)
    else:
        settings = climbing.ClimbSettings(
            corpus=corpus,
            top_flops=parse_quantity(top, "--top"),
            vocab_size=vocab_size,
            seq_len=seq_len,
            seed=seed,
            device=device,
            optimizer=optimizer,
            family=family,
        )
        generation = climbing.climb(settings, home, say=say, quiet=as_json, on=on)
    text = sample_of(generation, home)
    report = write_report(generation, sample=text)
    scored = json.loads((generation / "score.json").read_text())
    if as_json:
        print_json({"generation": str(generation), "report": str(report), **scored, "sample": text})
        return
    console.print(score_table(generation, scored))
    for line in beside_lines(generation):
        console.print(line, highlight=False)
    console.print(f"\nWhat it writes after [bold]{PROMPT!r}[/bold]:\n", highlight=False)
    console.print(text, highlight=False, markup=False)
    console.print(f"\nReport: {report}")


PROMPT = "def "


def sample_of(generation: Path, home: Path) -> str:
    """What the generation's model writes after `PROMPT`."""
    from tenfold.serve.complete import complete

    return complete(generation / "model", PROMPT, max_new_tokens=160, temperature=0.7, top_p=0.95, seed=0)


def beside_lines(generation: Path) -> list[str]:
    """How a generation compares with the newest of the other family and equal compute in its home; empty without one."""
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
    from rich.table import Table

    forecast = json.loads((generation / "forecast.json").read_text())
    title = f"Forecast of {generation.name}, scored"
    table = Table("", "forecast", "80 % interval", "measured", "error", "inside 80 %", title=title)
    units = {"loss_bits_per_byte": "bits/byte", "tokens_per_s": "tokens/s", "seconds": "s", "energy_kwh": "kWh"}
    for name, row in scored["scores"].items():
        low, high = forecast[name]["intervals"]["80"]
        table.add_row(
            f"{name.split('_')[0] if name != 'tokens_per_s' else 'speed'} ({units[name]})",
            f"{row['forecast']:.4g}",
            f"{low:.4g} to {high:.4g}",
            f"{row['measured']:.4g}",
            f"{row['error_pct']:+.2f} %",
            "yes" if row["inside_80"] else "no",
        )
    return table


@app.command("score")
def score(
    generation: Annotated[Path, typer.Argument(help="A generation's directory.")],
    as_json: AsJson = False,
) -> None:
    """Score the forecast of a finished generation; a forecast changed after the run began is refused.

    Example: tenfold score generations/g1
    """
    from rich.console import Console

    from tenfold.scale.forecast import score as score_forecast

    scored = score_forecast(generation)
    if as_json:
        print_json(scored)
    else:
        Console().print(score_table(generation, scored))
