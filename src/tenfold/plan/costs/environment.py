"""Carbon and water of a run: on site and off site, by location and by contract."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from tenfold.plan.costs.power import Held, RunPower
from tenfold.plan.costs.water import wue
from tenfold.plan.ranges import Range
from tenfold.plan.sites.site import Site, water_of_fuels
from tenfold.plan.workload.profiles import Carbon, Weather, over_run
from tenfold.spec.errors import TenfoldError, nearest

HOURS_PER_YEAR = 8766.0


@dataclass(frozen=True)
class Footprint:
    """Tonnes of CO2e and cubic metres of water of one run.

    `location_tco2e` is energy times the grid's carbon (GHG Protocol, scope 2 by location); `market_tco2e` counts
    contracts for clean power. `embodied_tco2e` is the run's part of making the machines, in neither of them.
    """

    kgco2_per_kwh: Range
    location_tco2e: Range
    market_tco2e: Range
    clean_share: float
    embodied_tco2e: Range
    wue_l_per_kwh: Range
    water_on_site_m3: Range
    off_site_l_per_kwh: Range
    water_off_site_m3: Range
    source: str


@cache
def facts() -> dict[str, Any]:
    """`plan/data/cards.toml`: the rules behind published model cards, and embodied carbon."""
    return tomllib.loads(resources.files("tenfold.plan").joinpath("data/cards.toml").read_text())


@dataclass(frozen=True)
class Hourly:
    """Hourly figures that replace the site's yearly ones. `start_hour` of the year places the run in them; `cooling`
    counts only with `weather`."""

    carbon: Carbon | None = None
    weather: Weather | None = None
    cooling: str = "tower"
    start_hour: int | None = None


def run_footprint(
    held: Held, power: RunPower, site: Site, clean_share: float = 0.0, hourly: Hourly = Hourly()
) -> Footprint:
    """Carbon and water of the energy in `power`, and of making the machines held for it.

    `clean_share` (0 to 1) is the part of the energy matched by contracts.
    """
    if not 0 <= clean_share <= 1:
        raise TenfoldError(f"The clean share must lie between 0 and 1, not {clean_share}.")
    hours, carbon, weather = Range.of(held.wall_hours), hourly.carbon, hourly.weather
    intensity = over_run(carbon.kgco2_per_kwh, hours.mid, hourly.start_hour) if carbon else site.kgco2_per_kwh
    on_site = over_run(wue(weather, hourly.cooling), hours.mid, hourly.start_hour) if weather else site.wue_l_per_kwh
    off_site = water_of_fuels(carbon.fuels) if carbon and carbon.fuels else site.water_off_site_l_per_kwh
    location = power.energy_mwh * intensity
    sources = ["hourly carbon"] * bool(carbon) + [f"hourly weather, {hourly.cooling} cooling"] * bool(weather)
    return Footprint(
        kgco2_per_kwh=intensity,
        location_tco2e=location,
        market_tco2e=(1 - clean_share) * location * site.residual_mix,
        clean_share=clean_share,
        embodied_tco2e=_embodied(held),
        wue_l_per_kwh=on_site,
        water_on_site_m3=power.it_energy_mwh * on_site,
        off_site_l_per_kwh=off_site,
        water_off_site_m3=power.energy_mwh * off_site,
        source="; ".join([*sources, site.source]),
    )


def _embodied(held: Held) -> Range:
    table = facts()["embodied"]
    per_gpu = Range.of(table["kgco2e_per_accelerator"]) + Range.of(table["kgco2e_per_server"]) / held.gpus_per_node
    years = Range.of(held.wall_hours) / HOURS_PER_YEAR
    return 1e-3 * (held.gpus + held.spare_gpus) * per_gpu * years / Range.of(table["years"])


def card_tco2e(
    family: str, gpu_hours: float, board_w: float, pue: float | None = None, kgco2_per_kwh: float | None = None
) -> float:
    """Tonnes of CO2e as the model cards of `family` (`Llama 3.1`, ...) reckon them: hours x board power x PUE x grid.

    `pue` and `kgco2_per_kwh` replace the family's rule. Raises TenfoldError with the nearest name where neither is known.
    """
    rules, key = facts()["rules"], family.lower().replace(" ", "-")
    if key not in rules and (pue is None or kgco2_per_kwh is None):
        raise TenfoldError(f"There is no carbon rule for the family {family!r}{nearest(key, rules)}: give PUE and kg CO2 per kWh.")
    rule = rules.get(key, {})
    return 1e-6 * gpu_hours * board_w * (pue or rule["pue"]) * (kgco2_per_kwh or rule["kgco2_per_kwh"])
