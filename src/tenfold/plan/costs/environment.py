"""Carbon of a run, location-based and market-based, and water on site and at power stations."""

from dataclasses import dataclass

from tenfold.plan.costs.power import Held, RunPower
from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.costs.water import wue
from tenfold.plan.facts import facts
from tenfold.plan.ranges import Range
from tenfold.plan.sites.site import Site, water_of_fuels
from tenfold.plan.workload.profiles import over_run, read_carbon, read_weather
from tenfold.spec.errors import TenfoldError, nearest

HOURS_PER_YEAR = 8766.0


@dataclass(frozen=True)
class Footprint:
    """Tonnes of CO2e and cubic metres of water of one run.

    `location_tco2e` is energy times the grid's carbon (GHG Protocol, location-based scope 2); `market_tco2e` takes off the share
    matched by contracts for clean power (market-based). `embodied_tco2e` is the run's share of making the machines, which is in
    neither.
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


def run_footprint(held: Held, power: RunPower, site: Site, around: SiteOptions = SiteOptions()) -> Footprint:
    """Carbon and water of the energy in `power`, and carbon of making the machines held for it.

    Hourly profiles in `around` replace the site's yearly figures. Raises TenfoldError for a clean share outside of 0 to 1 and for
    profiles that cannot be read.
    """
    clean_share = around.clean_share
    if not 0 <= clean_share <= 1:
        raise TenfoldError(f"The clean share (--clean-share) must lie between 0 and 1, not {clean_share}.")
    intensity, on_site, off_site = site.kgco2_per_kwh, site.wue_l_per_kwh, site.water_off_site_l_per_kwh
    hours, sources = Range.of(held.wall_hours).mid, [site.source]
    if around.weather_epw:
        on_site = over_run(wue(read_weather(around.weather_epw), around.cooling), hours, around.start_hour)
        sources.insert(0, f"hourly weather, {around.cooling} cooling")
    if around.carbon_csv:
        carbon = read_carbon(around.carbon_csv)
        intensity = over_run(carbon.kgco2_per_kwh, hours, around.start_hour)
        off_site = water_of_fuels(carbon.fuels) if carbon.fuels else off_site
        sources.insert(0, "hourly carbon")
    location = power.energy_mwh * intensity
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
        source="; ".join(sources),
    )


def _embodied(held: Held) -> Range:
    table = facts("cards")["embodied"]
    per_gpu = Range.of(table["kgco2e_per_accelerator"], "carbon of an accelerator")
    per_gpu += Range.of(table["kgco2e_per_server"], "carbon of a server") / held.gpus_per_node
    years = Range.of(held.wall_hours) / HOURS_PER_YEAR
    return 1e-3 * (held.gpus + held.spare_gpus) * per_gpu * years / Range.of(table["years"], "years of use")


def card_tco2e(
    family: str, gpu_hours: float, board_w: float, pue: float | None = None, kgco2_per_kwh: float | None = None
) -> float:
    """Tonnes of CO2e as the model cards of `family` (`Llama 3.1`, ...) compute them: hours x board power x PUE x grid carbon.

    `pue` and `kgco2_per_kwh` replace the family's own. Raises TenfoldError for a family without a rule, unless both are given.
    """
    rules, key = facts("cards")["rules"], family.lower().replace(" ", "-")
    if key not in rules and (pue is None or kgco2_per_kwh is None):
        raise TenfoldError(
            f"There is no carbon rule for the family {family!r}{nearest(key, rules)}: give its PUE and the grid's kg CO2 per kWh."
        )
    rule = rules.get(key, {})
    return 1e-6 * gpu_hours * board_w * (pue or rule["pue"]) * (kgco2_per_kwh or rule["kgco2_per_kwh"])
