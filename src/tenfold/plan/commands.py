"""Plan the next generation: model shape, layout, days, failures, cost, power, carbon, water."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct, structs

from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.request import GpuRequest, Request, StepRequest
from tenfold.plan.serving.rank import ServeRequest
from tenfold.plan.workload.machine import Machine, machine
from tenfold.spec.commands import File, Folder, Home, Json, print_json
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import file_sha256, write_json, write_text
from tenfold.spec.ranges import Text

Rate = Annotated[float, Meta(ge=1e-3, le=1e6)]
RateOrNone = Annotated[float, Meta(ge=0, le=1e6)]
AtLeastOne = Annotated[int, Meta(ge=1, le=2**20)]


class HardwareOptions(Struct, frozen=True):
    """The network and software of an accelerator."""

    network_gb_per_s: Annotated[
        Rate | None, Meta(description="Bandwidth of the network between servers, in GB/s per GPU and direction.")
    ] = None
    stack: Annotated[
        Text, Meta(description="Training software, with its version: tenfold, megatron-bridge-26.02, torchtitan-2024.12, ...")
    ] = "tenfold"
    domain_gpus: Annotated[
        AtLeastOne | None, Meta(description="GPUs joined by the scale-up network (NVLink, ICI); 8 in a DGX H100.")
    ] = None
    board_w: Annotated[
        Rate | None, Meta(description="Peak power of an accelerator in W, in place of the data sheet's; its speed stays the same.")
    ] = None
    buildings: Annotated[AtLeastOne, Meta(description="Number of buildings over which the GPUs are spread evenly.")] = 1
    between_gb_per_s: Annotated[RateOrNone, Meta(description="Bandwidth between buildings, in GB/s per GPU and direction.")] = 0.0

    def machine_of(self, accelerator: str, home: Path) -> tuple[Machine, str]:
        """The machine, with its calibration from `home` if there is one, and a sentence on that calibration or ''.

        Raises TenfoldError for an accelerator or software that is not known.
        """
        from tenfold.plan.validation.calibrate import calibrated

        known, unknown = None, None
        try:
            said = {"scaleout_gb_per_s": self.network_gb_per_s, "domain_gpus": self.domain_gpus, "tdp_w": self.board_w}
            known = machine(accelerator, self.stack, **{name: value for name, value in said.items() if value})
        except TenfoldError as error:
            unknown = error
        part, words = calibrated(known, accelerator, home)
        if part is None:
            raise unknown or TenfoldError(f"There is no accelerator {accelerator!r}: name one with --accelerator.")
        return replace(part, buildings=self.buildings, between_gb_per_s=self.between_gb_per_s), words


class MachineOptions(HardwareOptions, frozen=True):
    """The accelerator, its network and its software."""

    accelerator: Annotated[Text, Meta(description="Accelerator: h100, b200, mi300x, ...")] = "h100"

    def machine(self, home: Path) -> tuple[Machine, str]:
        """`machine_of` for `accelerator`."""
        return self.machine_of(self.accelerator, home)


class Output(Struct, frozen=True):
    """Where calibrations are found, and how the result is shown."""

    home: Home = Path("generations")
    json: Json = False


class PlanOutput(Output, frozen=True):
    """What of a plan is shown, and where it is written."""

    explain: Annotated[
        Text | None,
        Meta(description="Print the formula of one result with its numbers: step_time, memory, layout, failures, cost, ..."),
    ] = None
    out: Annotated[Folder | None, Meta(description="Directory to write plan.json and plan.html to.")] = None


@dataclass(frozen=True)
class PlanRequest(Request):
    """What is trained, or with --serve what is served."""

    serving: ServeRequest = field(default_factory=ServeRequest)


def make(
    *,
    asked: PlanRequest = PlanRequest(),
    fixed: GpuRequest = GpuRequest(),
    hardware: MachineOptions = MachineOptions(),
    step: StepRequest = StepRequest(),
    around: SiteOptions = SiteOptions(),
    output: PlanOutput = PlanOutput(),
) -> None:
    """Plan the training of one generation, or with --serve the serving of a ranker.

    Examples:

      tenfold plan --after llama-3.1-405b --times 10 --accelerator h100 --gpus 100000 --region TX

      tenfold plan --flops 3.8e26 --days 90 --accelerator b200 --experts 128

      tenfold plan --model my.toml --budget-usd 2e6 --law law.json

      tenfold plan --serve rank --queries-per-s 20000 --items 10000000
    """
    if asked.serving.serve:
        _plan_serving(asked.serving, output)
        return
    from tenfold.plan.assumptions import assumptions
    from tenfold.plan.costs.consequences import consequences
    from tenfold.plan.document import document
    from tenfold.plan.plan import solve
    from tenfold.plan.validation.calibrate import FILE
    from tenfold.plan.workload.data import generations

    part, calibrated = hardware.machine(output.home)
    plan = solve(asked, fixed, part, step, output.home, around)
    if output.explain:
        _explain(plan, output.explain, around, output.json)
        return
    after = consequences(plan.workload, around)
    whole = document(
        plan.workload,
        after,
        alternatives=plan.alternatives,
        notes=[*([calibrated] if calibrated else []), *plan.notes],
        request=_request(asked, fixed, hardware, step, around),
        limits=fixed.limits,
        assumed=assumptions(part, after, around),
        data=generations(plan.workload.tokens, asked.unique_tokens, asked.feedback_tokens),
    )
    _show(whole, output, made_from=[output.home / FILE] if calibrated else [])


def _explain(plan: Any, name: str, around: SiteOptions, json: bool) -> None:
    from tenfold.plan.explain import explain

    lines = explain(plan, name, around)
    if json:
        print_json({"name": name, "lines": lines, "parts_s": plan.workload.step_time.parts()})
    else:
        print("\n".join(lines))


def _show(plan: dict[str, Any], output: PlanOutput, made_from: Sequence[Path]) -> None:
    """Print the plan; where --out is given, also write it, its page, and its forecast, which names the files `made_from`."""
    from tenfold.plan.document import record
    from tenfold.plan.report import html, terminal
    from tenfold.spec.terminal import console

    if output.out:
        write_json(output.out / "plan.json", plan)
        record(output.home, plan, {str(file.relative_to(output.home)): file_sha256(file) for file in made_from})
        write_text(output.out / "plan.html", html(plan))
    if output.json:
        print_json(plan)
    else:
        console().print(terminal(plan))


def _plan_serving(asked: ServeRequest, output: PlanOutput) -> None:
    from tenfold.plan.serving.rank import document, lines, plan_rank, rank_costs

    plan = plan_rank(asked, rank_costs(output.home))
    if output.out:
        write_json(output.out / "plan.json", document(asked, plan))
    if output.json:
        print_json(document(asked, plan))
    else:
        print("\n".join(lines(asked, plan)))


def _request(*options: Any) -> dict[str, Any]:
    """The request as it is kept in plan.json: every option that has a value."""
    values: dict[str, Any] = {}
    for table in options:
        values |= structs.asdict(table) if isinstance(table, Struct) else asdict(table)
    values.pop("serving", None)
    return {k: v if isinstance(v, int | float | str) else str(v) for k, v in values.items() if v is not None}


@dataclass(frozen=True)
class CompareRequest(Request):
    """What is trained on each of the accelerators, and in which steps."""

    step: StepRequest = field(default_factory=StepRequest)


def compare(
    accelerators: Annotated[list[str], Meta(description="Accelerators to compare.")],
    /,
    *,
    asked: CompareRequest = CompareRequest(),
    fixed: GpuRequest = GpuRequest(),
    hardware: HardwareOptions = HardwareOptions(),
    around: SiteOptions = SiteOptions(),
    output: Output = Output(),
) -> None:
    """Compare the same training on several accelerators, within 90 days unless --gpus or --days is given.

    Example: tenfold plan compare h100 h200 b200 mi300x mtia-v2 --after llama-3.1-70b --times 10
    """
    fixed = fixed if fixed.gpus or fixed.days else replace(fixed, days=90.0)
    machines = [hardware.machine_of(name, output.home)[0] for name in accelerators]
    rows = [_compared(part, asked, fixed, around, output.home) for part in machines]
    if output.json:
        print_json({"rows": rows})
        return
    from tenfold.spec.terminal import Figures, console

    table, out = Figures("", "GPUs", "days", "MFU", "rent, M$", "energy, GWh"), console()
    for row in (row for row in rows if "reason" not in row):
        rent, energy = (("~" if guessed in row["guessed"] else "") for guessed in ("rent_usd", "tdp_w"))
        table.add_row(
            row["accelerator"], f"{row['gpus']:,}", _spread(row["wall_days"]), f"{row['mfu']:.0%}",
            rent + _spread(row["rent_usd"], 1e-6), energy + _spread(row["energy_mwh"], 1e-3),
        )  # fmt: skip
    out.print(table)
    out.print("Best guess (10 to 90 %); ~: the price or the board power is a guess.")
    for row in (row for row in rows if "reason" in row):
        out.print(f"{row['accelerator']}: {row['reason']}")


def _spread(ends: dict[str, float], by: float = 1.0) -> str:
    """`90 (71-118)`."""
    low, mid, high = (
        f"{by * ends[end]:,.3g}" if by * ends[end] < 1000 else f"{by * ends[end]:,.0f}" for end in ("low", "mid", "high")
    )
    return f"{mid} ({low}-{high})"


def _compared(part: Machine, asked: CompareRequest, fixed: GpuRequest, around: SiteOptions, home: Path) -> dict[str, Any]:
    """The row of one accelerator: the figures of its plan, or the reason why there is no plan."""
    from tenfold.plan.costs.consequences import consequences
    from tenfold.plan.plan import solve

    name = part.accelerator.key
    try:
        plan = solve(asked, fixed, part, asked.step, home, around)
        w, c = plan.workload, consequences(plan.workload, around)
    except TenfoldError as error:
        return {"accelerator": name, "reason": str(error)}
    return {
        "accelerator": name,
        "gpus": w.gpus,
        "wall_days": c.wall_days.ends(),
        "mfu": w.mfu,
        "gpu_hours": c.gpu_hours.ends(),
        "rent_usd": c.cost.rent_usd.ends(),
        "energy_mwh": c.power.energy_mwh.ends(),
        "guessed": [*w.accelerator.guessed, *(["rent_usd"] if c.cost.assumed and around.rent_usd_per_h is None else [])],
        "layout": w.layout.words(),
    }


def validate(
    *,
    layouts: Annotated[
        File | None, Meta(description="CSV file of measured steps, with the columns of the package's layouts.csv.")
    ] = None,
    runs: Annotated[
        File | None, Meta(description="CSV file of whole training runs, with the columns of the package's training_runs.csv.")
    ] = None,
    stack: Annotated[
        Text | None, Meta(description="Software of the rows that name none in a column stack, for example megatron-bridge-26.02.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare the planner with published runs: the errors of step time, layout ranking, memory and GPU-hours.

    Example: tenfold plan validate --layouts my_layouts.csv --stack nemo-25.04
    """
    from tenfold.plan.document import plain
    from tenfold.plan.validation.validate import validate as compare_with_published
    from tenfold.spec.terminal import Figures, console

    found = compare_with_published(layouts, runs, stack)
    if json:
        print_json({**{name: [plain(one) for one in getattr(found, name)] for name in ("errors", "rows", "unread")},
                    "ranges": plain(found.ranges), "remarks": found.remarks})  # fmt: skip
        return
    table = Figures("", "source", "rows", "mean error", "median", "bias", "worst")
    for e in found.errors:
        table.add_row(
            e.kind, e.source, str(e.rows), f"{e.mean_abs_pct:.1f} %", f"{e.median_abs_pct:.1f} %", f"{e.bias_pct:+.1f} %",
            f"{e.worst_pct:+.0f} % {e.worst}",
        )  # fmt: skip
    out = console()
    out.print(table)
    for remark in found.remarks:
        out.print(remark)


def calibrate(
    run: Annotated[Folder, Meta(description="Directory of a finished run of `tenfold train`.")],
    /,
    *,
    home: Home = Path("generations"),
    json: Json = False,
) -> None:
    """Calibrate the planner to a machine by a run that was trained on it; plans use the pooled calibrations of all its runs.

    Example: tenfold plan calibrate generations/g2
    """
    from tenfold.plan.validation.calibrate import calibrate as measure
    from tenfold.plan.validation.calibrate import write

    found = measure(run)
    path = write(found, home)
    if json:
        print_json({**asdict(found), "file": str(path)})
        return
    print(
        f"{found.accelerator.name}: measured {found.measured_step_s:.4g} s per step, planned {found.planned_step_s:.4g} s; "
        f"rates x {found.factor:.3f}. Written to {path}; plans for --accelerator {found.accelerator.key} use it."
    )
    if abs(found.calibrated_step_s / found.measured_step_s - 1) > 0.02:
        print(
            f"No rates below the accelerator's peak give the measured step: with the calibration it is planned at "
            f"{found.calibrated_step_s:.4g} s. Calibrate with a larger run."
        )
