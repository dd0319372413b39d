"""The site of a run: price, carbon and water of its electricity, and the efficiency of its building."""

from dataclasses import dataclass

from tenfold.plan.facts import facts
from tenfold.plan.ranges import Range, total
from tenfold.spec.errors import TenfoldError, nearest


@dataclass(frozen=True)
class Site:
    """A site and its building. `pue`: facility energy over IT energy. `wue_l_per_kwh`: litres on site per IT kWh. `residual_mix`:
    factor on the grid's carbon once others' contracts for clean power are taken out."""

    key: str
    name: str
    usd_per_kwh: Range
    kgco2_per_kwh: Range
    water_off_site_l_per_kwh: Range
    pue: Range
    wue_l_per_kwh: Range
    residual_mix: Range
    source: str


def water_of_fuels(shares: dict[str, float]) -> Range:
    """Litres that power stations evaporate per kWh, for shares (of any sum) of the fuels: nuclear, coal, gas, oil, hydro, ..."""
    factors = facts("grid")["water_l_per_kwh"]
    whole = sum(shares.values())
    return total([Range.of(factors[fuel], f"water of {fuel}") * (share / whole) for fuel, share in shares.items()])


def site(region: str = "US", pue: float | None = None, wue_l_per_kwh: float | None = None) -> Site:
    """The site in a US state (`TX` or `Texas`) or `US`, with a typical building unless `pue` or `wue_l_per_kwh` is given.

    Raises TenfoldError for an unknown region, with the nearest name, and for a PUE below 1.
    """
    table = facts("grid")
    keys = {key.lower(): key for key in table["states"]} | {row["name"].lower(): key for key, row in table["states"].items()}
    if region.lower() not in keys:
        raise TenfoldError(f"There is no region {region!r}{nearest(region, keys)}: name a US state, such as TX or Texas, or US.")
    if pue is not None and pue < 1:
        raise TenfoldError(f"A PUE of {pue} is impossible, as the building uses at least its machines' energy: give 1 or more.")
    key = keys[region.lower()]
    row = table["states"][key]
    industrial, commercial = sorted((row["industrial_usd_per_kwh"], row["commercial_usd_per_kwh"]))
    return Site(
        key=key,
        name=row["name"],
        usd_per_kwh=Range(industrial * table["price"]["contract_share"][0], industrial, commercial, "price of electricity"),
        kgco2_per_kwh=_carbon(key, row["kgco2_per_kwh_2016"]),
        water_off_site_l_per_kwh=water_of_fuels(table["fuels"].get(key, table["fuels"]["US"])),
        pue=Range.of(pue or table["site"]["pue"], "PUE"),
        wue_l_per_kwh=Range.of(table["site"]["wue_l_per_kwh"] if wue_l_per_kwh is None else wue_l_per_kwh, "WUE"),
        residual_mix=Range.of(table["site"]["residual_mix"], "residual mix"),
        source="EIA 2023 prices; eGRID 2016 carbon with the US trend to 2023"
        + ("; hourly means of 2022" if key in table["kgco2_per_kwh_2022"] else ""),
    )


def _carbon(key: str, of_2016: float) -> Range:
    """kg CO2 per kWh: mid is the hourly mean of 2022 where it is known, otherwise the figure of 2016 with the national trend."""
    trend = facts("grid")["trend"]
    mid = facts("grid")["kgco2_per_kwh_2022"].get(key, of_2016 * trend["us_kgco2_per_kwh_2023"] / trend["us_kgco2_per_kwh_2016"])
    low, _, high = trend["uncertainty"]
    return Range(low * mid, mid, max(high * mid, of_2016), "carbon of the grid")
