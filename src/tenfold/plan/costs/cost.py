"""The cost of a run on rented machines, and on machines that one owns."""

from dataclasses import dataclass

from tenfold.plan.costs.power import Held, RunPower
from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.facts import facts
from tenfold.plan.ranges import Range, total
from tenfold.plan.sites.site import Site
from tenfold.plan.workload.profiles import over_run, read_prices
from tenfold.spec.accelerator import Accelerator, accelerator

HOURS_PER_YEAR = 8766.0


@dataclass(frozen=True)
class Price:
    """USD: rent per accelerator-hour, and purchase of one accelerator without its server; `assumed` if either is not published."""

    rent_usd_per_h: Range
    purchase_usd: Range
    assumed: bool
    source: str


@dataclass(frozen=True)
class RunCost:
    """USD of one run. The rent includes everything (servers, power, building); owning is the sum of `own_parts_usd`."""

    gpu_hours: Range
    rent_usd: Range
    own_usd: Range
    own_parts_usd: dict[str, Range]
    rent_usd_per_gpu_hour: Range
    own_usd_per_gpu_hour: Range
    usd_per_kwh: Range
    assumed: bool
    source: str


@dataclass(frozen=True)
class Outlay:
    """USD of all purchases for the machines of a run, by part and by date of payment.

    `run_share` is the cost of owning them during the run, over the purchases; the machines serve later runs, too.
    """

    parts_usd: dict[str, Range]
    total_usd: Range
    paid_usd: dict[str, Range]
    run_share: Range


def price(part: Accelerator) -> Price:
    """Rent and purchase of one accelerator; where none is known, H100's scaled by peak bf16 rate, with a wider range."""
    rent, rent_source, rent_assumed = _known_or_scaled("rent_usd_per_h", part)
    purchase, purchase_source, purchase_assumed = _known_or_scaled("purchase_usd", part)
    return Price(rent, purchase, rent_assumed or purchase_assumed, f"rent: {rent_source}; purchase: {purchase_source}")


def _known_or_scaled(table: str, part: Accelerator) -> tuple[Range, str, bool]:
    known, own = facts("prices")[table], getattr(part, table)
    if own is not None:
        return Range.of(own, table), part.source, False
    if part.key in known:
        return Range.of(known[part.key]["usd"], table), known[part.key]["source"], False
    ratio = part.bf16_tflops / accelerator("h100").bf16_tflops
    mid = known["h100"]["usd"][1] * ratio
    return mid * Range.of(facts("prices")["unknown"]["spread"], table), "none published, scaled from H100 by peak bf16 rate", True


def run_cost(held: Held, power: RunPower, site: Site, around: SiteOptions = SiteOptions()) -> RunCost:
    """The cost of holding machines for a run. A rent and hourly prices in `around` replace the market's and the site's."""
    prices, wall_hours = price(held.accelerator), Range.of(held.wall_hours)
    hours = (held.gpus + held.spare_gpus) * wall_hours
    rent = prices.rent_usd_per_h if around.rent_usd_per_h is None else Range.of(around.rent_usd_per_h)
    kwh_price = site.usd_per_kwh
    if around.price_csv:
        kwh_price = over_run(read_prices(around.price_csv), wall_hours.mid, around.start_hour)
    parts = _own_parts(held, prices.purchase_usd, power)
    parts["electricity"] = 1e3 * power.energy_mwh * kwh_price
    whole = total(parts.values())
    return RunCost(
        gpu_hours=hours,
        rent_usd=hours * rent,
        own_usd=whole,
        own_parts_usd=parts,
        rent_usd_per_gpu_hour=rent,
        own_usd_per_gpu_hour=whole / hours.mid,
        usd_per_kwh=kwh_price,
        assumed=prices.assumed,
        source=prices.source,
    )


def outlay(held: Held, power: RunPower, cost: RunCost) -> Outlay:
    """The purchases: accelerators with spares, their servers and network, and the building for their peak power.

    The building is paid in two equal parts, two years and one year before the start; the machines in the year before the start.
    """
    own, bought = _own(), (held.gpus + held.spare_gpus) * price(held.accelerator).purchase_usd
    parts = {
        "accelerators": bought,
        "servers": bought * own["server"],
        "network and storage": bought * (1 + own["server"]) * own["network"],
        "building": power.peak_mw * own["facility_usd_per_mw"],
    }
    half, whole = 0.5 * parts["building"], total(parts.values())
    return Outlay(
        parts, whole, {"two years before the start": half, "the year before the start": whole - half}, cost.own_usd / whole
    )


def _own() -> dict[str, Range]:
    return {k: Range.of(v, f"own {k}") for k, v in facts("prices")["own"].items() if k != "source"}


def _own_parts(held: Held, purchase_usd: Range, power: RunPower) -> dict[str, Range]:
    """The cost of owning the machines during the run, without electricity."""
    own = _own()
    wall_years = Range.of(held.wall_hours) / HOURS_PER_YEAR
    years = (held.gpus + held.spare_gpus) * Range.of(held.wall_hours) / HOURS_PER_YEAR / own["in_use"]
    servers = purchase_usd * (1 + own["server"])
    capital = servers * (1 + own["network"])
    return {
        "accelerators": purchase_usd / own["years"] * years,
        "servers": purchase_usd * own["server"] / own["years"] * years,
        "network and storage": servers * own["network"] / own["years"] * years,
        "interest": capital * own["capital_per_year"] * 0.5 * years,
        "people and repair": capital * own["operation_per_year"] * years,
        "building": power.peak_mw * own["facility_usd_per_mw"] / own["facility_years"] * wall_years / own["in_use"],
    }
