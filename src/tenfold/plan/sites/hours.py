"""Hourly profiles of a site's price, carbon and weather, in place of its state's yearly figures."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from tenfold.plan.costs.water import wue
from tenfold.plan.ranges import Range
from tenfold.plan.sites.inputs import Place
from tenfold.plan.sites.site import Site
from tenfold.plan.workload.profiles import read_carbon, read_prices, read_weather


def by_hour(region: Site, place: Place) -> Site:
    """The site with the means of the profiles that `place` names.

    Machines draw the same power in all hours of a year, so that the mean over the hours is exact. Other years are taken to be as
    uncertain as the state's figure is. Raises TenfoldError where a profile is missing or has no figures.
    """
    if place.price_csv:
        region = replace(region, usd_per_kwh=_around(region.usd_per_kwh, read_prices(Path(place.price_csv))))
    if place.carbon_csv:
        region = replace(region, kgco2_per_kwh=_around(region.kgco2_per_kwh, read_carbon(Path(place.carbon_csv)).kgco2_per_kwh))
    if place.weather_epw:
        litres = float(wue(read_weather(Path(place.weather_epw)), place.cooling).mean())
        region = replace(region, wue_l_per_kwh=Range.of(litres))
    return region


def _around(usual: Range, hourly: np.ndarray) -> Range:
    """The range of a figure, scaled so that its middle is the mean of the hours."""
    return usual * (float(hourly.mean()) / usual.mid)
