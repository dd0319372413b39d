"""Hourly profiles of a year: carbon and fuels of a grid, electricity prices, weather.

Formats: CSV with a column `avg_CI` (g CO2/kWh) and megawatts by fuel in EIA's codes, CSV with a column of prices in USD/MWh, and
EnergyPlus weather files (EPW).
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenfold.plan.ranges import Range
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import readable

FUELS = {"WND": "wind", "SUN": "solar", "WAT": "hydro", "OIL": "oil", "NG": "gas", "COL": "coal", "NUC": "nuclear", "OTH": "other"}


@dataclass(frozen=True)
class Weather:
    """Hourly dry-bulb temperature (C), relative humidity (0 to 1) and pressure (Pa), each [hours]."""

    dry_bulb_c: np.ndarray
    humidity: np.ndarray
    pressure_pa: np.ndarray


@dataclass(frozen=True)
class Carbon:
    """Hourly kg CO2/kWh [hours], and the share of each fuel over the year (empty where the file has none)."""

    kgco2_per_kwh: np.ndarray
    fuels: dict[str, float]


def over_run(hourly: np.ndarray, hours: float, start_hour: int | None = None) -> Range:
    """The mean over a run of `hours` at constant power: mid for a start at `start_hour` of the year, low and high over all starts.

    Without `start_hour`, mid is the year's mean. A run that passes the end of the year continues at its beginning.
    """
    n = len(hourly)
    length = max(1, round(hours))
    whole, rest = divmod(length, n)
    sums = np.concatenate([[0.0], np.cumsum(np.concatenate([hourly, hourly]))])
    means = (whole * sums[n] + sums[rest : rest + n] - sums[:n]) / length
    mid = float(hourly.mean() if start_hour is None else means[start_hour % n])
    return Range(min(mid, float(means.min())), mid, max(mid, float(means.max())), "start of the run")


def read_carbon(path: Path) -> Carbon:
    """A year of a grid; an empty hour has the value of the hour before. Raises TenfoldError for a file without such figures."""
    rows = _rows(path, ["avg_CI"])
    fuels = {name: sum(_number(path, row.get(code) or "0") for row in rows) for code, name in FUELS.items()}
    whole = sum(fuels.values())
    return Carbon(_filled(path, rows, "avg_CI") / 1e3, {name: mw / whole for name, mw in fuels.items()} if whole else {})


def read_prices(path: Path) -> np.ndarray:
    """A year of electricity prices in USD per kWh [hours], from the column whose name contains USD/MWh.

    Raises TenfoldError for a file without such figures.
    """
    with readable(path), path.open(newline="") as file:
        column = next((c for c in csv.DictReader(file).fieldnames or [] if "usd/mwh" in c.lower()), "Price (USD/MWh)")
    return _filled(path, _rows(path, [column]), column) / 1e3


def read_weather(path: Path) -> Weather:
    """A typical year from an EnergyPlus weather file: columns 7, 9 and 10 are dry bulb, humidity and pressure.

    Raises TenfoldError for a file without hours.
    """
    with readable(path), path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) >= 30 and row[0].strip().isdigit()]
    if not rows:
        raise TenfoldError(f"{path} has no hours of weather: give an EnergyPlus weather file (.epw).")
    table = np.array([[_number(path, row[i]) for i in (6, 8, 9)] for row in rows])
    return Weather(table[:, 0], np.clip(table[:, 1] / 100, 0.01, 1), table[:, 2])


def _rows(path: Path, needed: list[str]) -> list[dict[str, str]]:
    if not path.exists():
        raise TenfoldError(f"There is no profile {path}: give a CSV file with a row per hour.")
    with readable(path), path.open(newline="") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in needed if name not in (reader.fieldnames or [])]:
            raise TenfoldError(f"{path} has no column {missing[0]!r}: give a CSV file with that column and a row per hour.")
        return list(reader)


def _number(path: Path, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise TenfoldError(f"{path} has {text[:40]!r} where a number is needed: correct or empty that cell.") from None


def _filled(path: Path, rows: list[dict[str, str]], column: str) -> np.ndarray:
    values = np.array([_number(path, row[column] or "nan") for row in rows])
    known = np.flatnonzero(~np.isnan(values))
    if not len(known):
        raise TenfoldError(f"{path} has no figures in column {column!r}: give a number per hour.")
    before = known[np.maximum(0, np.searchsorted(known, np.arange(len(values)), side="right") - 1)]
    return values[before]
