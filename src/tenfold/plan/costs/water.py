"""Water that cooling evaporates on site, computed from hourly weather by the thermodynamics of moist air.

Psychrometrics after ASHRAE Fundamentals (chapter 1): saturation by Magnus' formula in the coefficients of Alduchov and
Eskridge 1996, wet-bulb temperature by Stull 2011 (doi 10.1175/JAMC-D-11-0143.1), good to about 0.3 K.
"""

import numpy as np

from tenfold.plan.workload.profiles import Weather
from tenfold.spec.errors import TenfoldError, nearest

COOLING = ("closed", "outside-air", "tower")

AIR_KJ_PER_KG_K = 1.006
VAPOUR_KJ_PER_KG_K = 1.86
LATENT_KJ_PER_KG = 2501.0
CONCENTRATION = 5.0  # cycles of concentration of a tower's water: a fifth of the make-up water is blown down
TOWER_RISE_K = 8.0  # the air that leaves a tower is saturated, at this much above the wet bulb
SUPPLY_C = 29.4  # outside air is cooled by evaporation only above this (85 F, Open Compute data centre specification)
SERVER_RISE_K = 12.0  # by which the servers warm the air


def wet_bulb_c(dry_bulb_c: np.ndarray, humidity: np.ndarray) -> np.ndarray:
    """Wet-bulb temperature in C at sea level (Stull 2011, eq. 1) from dry bulb in C and relative humidity (0 to 1)."""
    rh = 100 * np.asarray(humidity)
    t = np.asarray(dry_bulb_c)
    return (
        t * np.arctan(0.151977 * np.sqrt(rh + 8.313659))
        + np.arctan(t + rh)
        - np.arctan(rh - 1.676331)
        + 0.00391838 * rh**1.5 * np.arctan(0.023101 * rh)
        - 4.686035
    )


def humidity_ratio(temperature_c: np.ndarray, humidity: np.ndarray | float, pressure_pa: np.ndarray | float) -> np.ndarray:
    """kg of vapour per kg of dry air, for a relative humidity of 0 to 1."""
    vapour = humidity * 610.94 * np.exp(17.625 * temperature_c / (temperature_c + 243.04))
    return 0.62198 * vapour / (pressure_pa - vapour)


def enthalpy(temperature_c: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Enthalpy in kJ per kg of dry air, for a humidity ratio in kg/kg."""
    return AIR_KJ_PER_KG_K * temperature_c + ratio * (LATENT_KJ_PER_KG + VAPOUR_KJ_PER_KG_K * temperature_c)


def wue(weather: Weather, cooling: str) -> np.ndarray:
    """Litres of water on site per kWh of heat, for each hour.

    `closed`: dry coolers, which use no water. `outside-air`: outside air is blown through, and cooled by evaporation in hot hours
    only. `tower`: an evaporative tower removes all heat; its air leaves saturated above the wet bulb, and the water is the vapour
    that the air takes up, plus blow-down. Raises TenfoldError for another kind of cooling.
    """
    if cooling not in COOLING:
        raise TenfoldError(f"There is no cooling {cooling!r}{nearest(cooling, COOLING)}: choose {', '.join(COOLING)}.")
    t, rh, p = weather.dry_bulb_c, weather.humidity, weather.pressure_pa
    if cooling == "closed":
        return np.zeros_like(t)
    wet = np.minimum(t, wet_bulb_c(t, rh))
    ratio = humidity_ratio(t, rh, p)
    if cooling == "tower":
        leaves = wet + TOWER_RISE_K
        ratio_out = humidity_ratio(leaves, 1.0, p)
        per_kg = np.maximum(0.0, ratio_out - ratio) / (enthalpy(leaves, ratio_out) - enthalpy(t, ratio))
        return 3600 * per_kg * CONCENTRATION / (CONCENTRATION - 1)
    cooled_k = np.clip(t - np.maximum(SUPPLY_C, wet), 0.0, None)
    air_kg = 3600 / (AIR_KJ_PER_KG_K * SERVER_RISE_K)
    return air_kg * cooled_k * AIR_KJ_PER_KG_K / LATENT_KJ_PER_KG
