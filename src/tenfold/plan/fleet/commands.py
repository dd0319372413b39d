"""`tenfold plan fleet`."""

from dataclasses import asdict

from tenfold.plan.commands import MachineOptions, Output
from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.fleet.shares import FleetRequest
from tenfold.plan.request import Request, StepRequest
from tenfold.spec.commands import print_json

SCHEMA = 1


def fleet(
    *,
    asked: Request = Request(),
    shares: FleetRequest = FleetRequest(),
    hardware: MachineOptions = MachineOptions(),
    step: StepRequest = StepRequest(),
    around: SiteOptions = SiteOptions(),
    output: Output = Output(),
) -> None:
    """Plan a whole fleet whose GPUs are shared by training, chat and ranking: throughput, power, energy and cost.

    Examples:

      tenfold plan fleet --gpus 600000 --accelerator gb300 --after llama-3.1-405b --times 10

      tenfold plan fleet --gpus 16384 --training-share 0.5 --chat-share 0.5 --ranking-share 0 --after llama-3.1-70b --run-days 90
    """
    from tenfold.plan.costs.cost import price
    from tenfold.plan.document import plain
    from tenfold.plan.fleet.shares import plan_fleet
    from tenfold.plan.report import count, usd
    from tenfold.spec.terminal import Figures, console

    part, calibrated = hardware.machine(output.home)
    found = plan_fleet(asked, shares, part, step, around, output.home)
    if output.json:
        request = {name: value for name, value in asdict(shares).items() if value is not None}
        print_json({"schema": SCHEMA, "request": request, "accelerator": part.accelerator.key, **plain(found)})
        return
    table = Figures("", "GPUs", "peak MW", "GWh", "rent", "owned", "bought")
    for name, c in found.costs.items():
        gpus = sum(role.gpus for role in found.roles if name in (role.name, "all"))
        table.add_row(
            name, f"{gpus:,}", count(c.peak_mw.mid), count(1e-3 * c.energy_mwh.mid), usd(c.rent_usd.mid), usd(c.own_usd.mid),
            usd(c.bought_usd.mid),
        )  # fmt: skip
    out, whole = console(), found.costs["all"]
    out.print(table)
    out.print(f"Energy, rent and cost of owning for {shares.period_days:g} days; best guesses.")
    for name, r in (("Rent", whole.rent_usd), ("owned", whole.own_usd), ("bought", whole.bought_usd)):
        out.print(f"{name.capitalize()}, all: {usd(r.low)} to {usd(r.high)} (10 to 90 %).")
    if guessed := [*(["prices"] if price(part.accelerator).assumed else []), *part.accelerator.guessed]:
        out.print(f"Guessed of {part.accelerator.name}, as they are not published: {', '.join(guessed)}.")
    for role in found.roles:
        out.print(f"{role.name.capitalize()}: {role.sentence}.")
    out.print(found.sentence)
    if calibrated:
        out.print(calibrated)
