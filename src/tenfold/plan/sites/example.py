"""Two sites and a demand tree of seven nodes, from published figures where there are any; what is assumed is marked so.

A stage is two years. Owning writes machines off over their years of use; demand without own power rents them.
"""

from tenfold.plan.facts import facts
from tenfold.plan.ranges import Range
from tenfold.plan.sites.site import site
from tenfold.plan.sites.staging import BuildSite
from tenfold.plan.sites.tree import Node, Tree
from tenfold.spec.accelerator import accelerators

STAGE_YEARS = 2
HOURS = STAGE_YEARS * 8766
ACCELERATOR = "h100"
GPUS = 100_000  # of the next generation where no plan says more
GRID_MW = {"OH": 1000.0, "LA": 2000.0}  # Meta's announcements: Prometheus in New Albany (2026), Hyperion in Richland Parish (2030)
WATER_M3_PER_YEAR = 659_000.0  # the most that one of Meta's sites was published to withdraw in 2023 (Clonee)
BEGIN_USD = 100e6  # land, permit and substation of a block: an assumption
GROWTH = {"slow": 1.0, "fast": 3.0}  # of demand in a stage: ten times the compute at three times the work per watt; an assumption
FAST = 0.6  # the probability of fast growth: an assumption


def w_per_gpu() -> float:
    """IT watts of an accelerator at peak, with its share of host and network."""
    table, tdp = facts("power"), accelerators()[ACCELERATOR].tdp_w or 0.0
    boards = tdp * (table["board"]["peak"][1] + table["host"]["peak"][1])
    return boards / (1 - table["network"]["share"][1])


def demand_tree(next_mw: float | None = None) -> Tree:
    """IT power in MW beyond what stands today: in the next stage that of the next generation, or more, and then growth again."""
    base = GPUS * w_per_gpu() / 1e6 if next_mw is None else next_mw
    nodes = [Node("now", None, 1.0, 0.0)]
    odds = {"slow": 1 - FAST, "fast": FAST}
    nodes += [Node(name, 0, odds[name], base * growth) for name, growth in GROWTH.items()]
    for parent, first in enumerate(GROWTH, start=1):
        nodes += [Node(f"{first}, {name}", parent, odds[name], nodes[parent].demand_mw * g) for name, g in GROWTH.items()]
    return Tree(tuple(nodes))


def example_sites() -> tuple[BuildSite, ...]:
    """A site in Ohio and one in Louisiana, at the middle of each range of prices, PUE and water."""
    return tuple(_build_site(region, power) for region, power in GRID_MW.items())


def unmet_usd() -> float:
    """Renting the accelerators of a MW for a stage."""
    return 1e6 / w_per_gpu() * HOURS * Range.of(facts("prices")["rent_usd_per_h"][ACCELERATOR]["usd"]).mid


def _build_site(region: str, power_mw: float) -> BuildSite:
    place, own = site(region), {key: Range.of(v).mid for key, v in facts("prices")["own"].items() if isinstance(v, list)}
    price = Range.of(facts("prices")["purchase_usd"][ACCELERATOR]["usd"]).mid * (1 + own["server"]) * (1 + own["network"])
    machines = 1e6 / w_per_gpu() * price * (1 / own["years"] + own["capital_per_year"] / 2 + own["operation_per_year"])
    return BuildSite(
        name=place.name,
        power_mw=power_mw,
        pue=place.pue.mid,
        water_m3=WATER_M3_PER_YEAR * STAGE_YEARS,
        m3_per_mw=place.wue_l_per_kwh.mid * HOURS,  # a MW for an hour is 1,000 kWh, and 1,000 l are a cubic metre
        begin_usd=BEGIN_USD,
        usd_per_mw=own["facility_usd_per_mw"],
        usd_per_mw_stage=machines * STAGE_YEARS + place.usd_per_kwh.mid * 1000 * HOURS * place.pue.mid,
    )
