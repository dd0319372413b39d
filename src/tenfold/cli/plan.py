"""`tenfold plan`: what the next generation takes; compare machines, validate the plan, calibrate it by a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tenfold.cli import AsJson, app, print_json

if TYPE_CHECKING:
    from tenfold.plan.plan import Plan


class PlanGroup(TyperGroup):
    """`tenfold plan --after X` is `tenfold plan make --after X`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["make", *args]
        return super().parse_args(ctx, args)


plan_app = typer.Typer(
    cls=PlanGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Plan the next generation: shape, layout, days, failures, money, power, carbon, water.\n\n"
    "Example: tenfold plan --after llama-3.1-405b --times 10 --accelerator h100 --gpus 100000 --region TX\n\n"
    "All options: tenfold plan make --help",
)
app.add_typer(plan_app, name="plan")

After = Annotated[str | None, typer.Option(help="A published model to follow.")]
Times = Annotated[float | None, typer.Option(help="How many times its compute (10 where not said).")]
Flops = Annotated[str | None, typer.Option(help="Training compute, as 3.8e26.")]
Experts = Annotated[int, typer.Option(help="Experts of a mixture (0: dense).")]
LawName = Annotated[str | None, typer.Option(help="llama3, chinchilla, besiroglu, or a law.json of `tenfold law fit`.")]
SeqLen = Annotated[int, typer.Option(help="Tokens of a sequence.")]
Dtype = Annotated[str, typer.Option(help="bf16 or fp8.")]
Home = Annotated[Path, typer.Option(help="Where generations and calibrations are kept.")]


@plan_app.command("make")
def make(
    after: After = None,
    times: Times = None,
    flops: Flops = None,
    model: Annotated[Path | None, typer.Option(help="A shape of one's own, as TOML (fields of ModelSpec).")] = None,
    tokens: Annotated[str | None, typer.Option(help="Tokens to train on, as 15T, in place of the law's.")] = None,
    accelerator: Annotated[str, typer.Option(help="h100, b200, mi300x, ...")] = "h100",
    gpus: Annotated[int | None, typer.Option(help="How many; solved for where --days or --budget-usd is given.")] = None,
    days: Annotated[float | None, typer.Option(help="Days of training, failures apart.")] = None,
    budget_usd: Annotated[float | None, typer.Option(help="Money for rent: the compute follows from it.")] = None,
    region: Annotated[str, typer.Option(help="A US state, as TX, or US.")] = "US",
    law: LawName = None,
    experts: Experts = 0,
    active_experts: Annotated[int, typer.Option(help="Experts per token (0: one in 32).")] = 0,
    shared_experts: Annotated[int, typer.Option(help="Experts that every token passes.")] = 1,
    interleave: Annotated[int, typer.Option(help="Every how many layers are routed.")] = 1,
    seq_len: SeqLen = 8192,
    global_batch: Annotated[int, typer.Option(help="Sequences per step (0: from the compute).")] = 0,
    dtype: Dtype = "bf16",
    data_tokens: Annotated[str | None, typer.Option(help="Unique tokens at hand, as 15T.")] = None,
    network_gb_per_s: Annotated[float | None, typer.Option(help="Scale-out network, GB/s per GPU and direction.")] = None,
    buildings: Annotated[int, typer.Option(help="Buildings that share the GPUs evenly.")] = 1,
    between_gb_per_s: Annotated[float, typer.Option(help="Between buildings, GB/s per GPU and direction.")] = 0.0,
    pue: Annotated[float | None, typer.Option(help="Of the building.")] = None,
    wue: Annotated[float | None, typer.Option(help="Litres of water on site per IT kWh.")] = None,
    clean_share: Annotated[float, typer.Option(help="Part of the energy matched by clean contracts, 0 to 1.")] = 0.0,
    carbon_csv: Annotated[Path | None, typer.Option(help="Hourly grid carbon: a column avg_CI, g CO2/kWh.")] = None,
    price_csv: Annotated[Path | None, typer.Option(help="Hourly prices: a column in USD/MWh.")] = None,
    weather_epw: Annotated[Path | None, typer.Option(help="Hourly weather, EnergyPlus format: water by wet bulb.")] = None,
    cooling: Annotated[str, typer.Option(help="With weather: closed, outside-air or tower.")] = "tower",
    explain: Annotated[
        str | None, typer.Option(help="step_time, memory, layout, failures, cost, ...: the formula, numbers put in.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for plan.json and plan.html.")] = None,
    home: Home = Path("generations"),
    as_json: AsJson = False,
) -> None:
    """Plan one generation.

    Examples:

    tenfold plan --after llama-3.1-405b --times 10 --accelerator h100 --gpus 100000 --region TX

    tenfold plan --flops 3.8e26 --days 90 --accelerator b200 --experts 128

    tenfold plan --model my.toml --budget-usd 2e6 --law law.json
    """
    from dataclasses import replace

    from tenfold.plan.costs.consequences import consequences
    from tenfold.plan.costs.surroundings import Surroundings
    from tenfold.plan.document import document
    from tenfold.plan.plan import solve
    from tenfold.plan.report import html, terminal
    from tenfold.plan.request import GpuRequest, Request, StepRequest
    from tenfold.spec.units import parse_quantity

    part, calibrated = _machine(accelerator, home, network_gb_per_s)
    part = replace(part, buildings=buildings, between_gb_per_s=between_gb_per_s)
    asked = Request(
        after=after,
        times=times,
        flops=parse_quantity(flops, "--flops") if flops else None,
        model=model,
        tokens=parse_quantity(tokens, "--tokens") if tokens else None,
        law=law,
        experts=experts,
        experts_per_token=active_experts,
        shared=shared_experts,
        interleave=interleave,
        unique_tokens=parse_quantity(data_tokens, "--data-tokens") if data_tokens else None,
    )
    plan = solve(asked, GpuRequest(gpus, days, budget_usd), part, StepRequest(seq_len, global_batch, dtype), home)
    notes = [*([calibrated] if calibrated else []), *plan.notes]
    request = {k: v for k, v in _given(locals()).items() if v is not None}
    around = Surroundings(
        region=region,
        pue=pue,
        wue_l_per_kwh=wue,
        clean_share=clean_share,
        carbon_csv=carbon_csv,
        price_csv=price_csv,
        weather_epw=weather_epw,
        cooling=cooling,
    )
    if explain:
        _explain(plan, explain, around, as_json)
        return
    whole = document(
        plan.workload,
        consequences(plan.workload, around),
        alternatives=plan.alternatives,
        notes=notes,
        request=request,
    )
    if out:
        import json

        out.mkdir(parents=True, exist_ok=True)
        (out / "plan.json").write_text(json.dumps(whole, indent=1) + "\n")
        (out / "plan.html").write_text(html(whole))
    if as_json:
        print_json(whole)
        return
    from rich.console import Console

    Console().print(terminal(whole))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    names = (
        "after", "times", "flops", "model", "tokens", "accelerator", "gpus", "days", "budget_usd", "region", "law", "experts",
        "seq_len", "dtype", "buildings",
    )  # fmt: skip
    return {name: str(values[name]) if isinstance(values[name], Path) else values[name] for name in names}


def _machine(name: str, home: Path, network_gb_per_s: float | None) -> tuple[Any, str]:
    from tenfold.plan.validation.calibrate import calibrated
    from tenfold.plan.workload.machine import machine
    from tenfold.spec.errors import TenfoldError

    changes: dict[str, Any] = {"scaleout_gb_per_s": network_gb_per_s} if network_gb_per_s else {}
    try:
        known = machine(name, **changes)
    except TenfoldError:
        part, words = calibrated(None, name, home)
        if part is None:
            raise
        return part, words
    return calibrated(known, name, home)


def _explain(plan: "Plan", name: str, around: Any, as_json: bool) -> None:
    from tenfold.plan.explain import explain

    lines = explain(plan, name, around)
    if as_json:
        print_json({"name": name, "lines": lines, "parts_s": plan.workload.step_time.parts()})
        return
    print("\n".join(lines))


@plan_app.command("compare")
def compare(
    accelerators: Annotated[list[str], typer.Argument(help="Accelerators to compare.")],
    after: After = None,
    times: Times = None,
    flops: Flops = None,
    gpus: Annotated[int | None, typer.Option(help="How many of each.")] = None,
    days: Annotated[float | None, typer.Option(help="Days of training; 90 where --gpus is not given.")] = None,
    region: Annotated[str, typer.Option(help="A US state, as TX, or US.")] = "US",
    law: LawName = None,
    experts: Experts = 0,
    seq_len: SeqLen = 8192,
    dtype: Dtype = "bf16",
    home: Home = Path("generations"),
    as_json: AsJson = False,
) -> None:
    """The same training on several accelerators.

    Example: tenfold plan compare h100 h200 b200 mi300x mtia-v2 --after llama-3.1-70b --times 10
    """
    from rich.console import Console
    from rich.table import Table

    from tenfold.plan.costs.consequences import consequences
    from tenfold.plan.costs.surroundings import Surroundings
    from tenfold.plan.plan import solve
    from tenfold.plan.request import GpuRequest, Request, StepRequest
    from tenfold.spec.errors import TenfoldError
    from tenfold.spec.units import parse_quantity

    asked = Request(after=after, times=times, flops=parse_quantity(flops, "--flops") if flops else None, law=law, experts=experts)
    rows: list[dict[str, Any]] = []
    for name in accelerators:
        part, _ = _machine(name, home, None)
        try:
            fixed = GpuRequest(gpus, days or (None if gpus else 90.0))
            plan = solve(asked, fixed, part, StepRequest(seq_len, dtype=dtype), home)
            w, c = plan.workload, consequences(plan.workload, Surroundings(region=region))
        except TenfoldError as error:
            rows.append({"accelerator": name, "reason": str(error)})
            continue
        rows.append(
            {
                "accelerator": name,
                "gpus": w.gpus,
                "wall_days": c.wall_days.mid,
                "mfu": w.mfu,
                "gpu_hours": c.gpu_hours.mid,
                "rent_usd": c.cost.rent_usd.mid,
                "energy_mwh": c.power.energy_mwh.mid,
                "layout": w.layout.words(),
            }
        )
    if as_json:
        print_json({"rows": rows})
        return
    table = Table("", "GPUs", "days", "MFU", "GPU-hours", "rent, M$", "MWh", "layout")
    for row in rows:
        if "reason" in row:
            table.add_row(row["accelerator"], "-", "-", "-", "-", "-", "-", row["reason"])
            continue
        table.add_row(
            row["accelerator"], f"{row['gpus']:,}", f"{row['wall_days']:.0f}", f"{row['mfu']:.1%}", f"{row['gpu_hours']:.3g}",
            f"{row['rent_usd'] / 1e6:,.0f}", f"{row['energy_mwh']:,.0f}", row["layout"],
        )  # fmt: skip
    Console().print(table)


@plan_app.command("validate")
def validate(
    layouts: Annotated[Path | None, typer.Option(help="A table with the columns of layouts.csv.")] = None,
    runs: Annotated[Path | None, typer.Option(help="A table with the columns of training_runs.csv.")] = None,
    as_json: AsJson = False,
) -> None:
    """What this plan gets wrong on published runs.

    Example: tenfold plan validate --layouts my_layouts.csv
    """
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from tenfold.plan.validation.validate import validate as compare_with_published

    errors, remarks = compare_with_published(layouts, runs)
    if as_json:
        print_json({"rows": [asdict(e) for e in errors], "remarks": remarks})
        return
    table = Table("", "source", "rows", "mean error", "median", "bias", "worst")
    for e in errors:
        table.add_row(
            e.kind, e.source, str(e.rows), f"{e.mean_abs_pct:.1f} %", f"{e.median_abs_pct:.1f} %", f"{e.bias_pct:+.1f} %",
            f"{e.worst_pct:+.0f} % {e.worst}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    for remark in remarks:
        console.print(remark)


@plan_app.command("calibrate")
def calibrate(
    run: Annotated[Path, typer.Argument(help="A directory of a finished run of `tenfold train`.")],
    home: Home = Path("generations"),
    as_json: AsJson = False,
) -> None:
    """Take the constants of the machine from a run on it; the next plan uses them and says so.

    Example: tenfold plan calibrate generations/g2
    """
    from dataclasses import asdict

    from tenfold.plan.validation.calibrate import calibrate as measure
    from tenfold.plan.validation.calibrate import write

    found = measure(run)
    path = write(found, home)
    if as_json:
        print_json({**asdict(found), "file": str(path)})
        return
    print(
        f"{found.accelerator.name}: measured {found.measured_step_s:.4g} s a step, planned {found.planned_step_s:.4g} s; "
        f"rates x {found.factor:.3f}. Kept in {path}; plans for --accelerator {found.accelerator.key} use it."
    )
    if abs(found.calibrated_step_s / found.measured_step_s - 1) > 0.02:
        print(
            f"No rates within the peak make the step that long: with these it is planned at {found.calibrated_step_s:.4g} s. "
            "Calibrate by a larger run."
        )
