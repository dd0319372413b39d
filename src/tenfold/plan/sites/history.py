"""Policies on history: decisions with what was known at the end of a year, compared with what one owner of data centres built.

Demand is that of machines which use the electricity that the owner used in each year. Policies know no later year; growth is
forecast from the years before. What was half built at the time is not published, and assumed (`ROOM`, `UNDER_WAY`). Phases, halls
and their lead times are those of `sites.toml`.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec.structs import replace as with_fields
from scipy import stats

from tenfold.plan.sites.backtest import Span, World, served
from tenfold.plan.sites.demand import DemandFile, Growth, State, Training, today
from tenfold.plan.sites.inputs import Chip, Place, SitesFile, read_toml
from tenfold.plan.sites.leads import Leads
from tenfold.plan.sites.policies import NAIVE, Policy, View, policies
from tenfold.plan.sites.portfolio import M, Portfolio, portfolio
from tenfold.plan.sites.staging import Begun

USE = "use"
YEARS_AHEAD = 4
LONG = 80.0  # quarters since a phase began, after which it is ready in any case
ROOM = {"ready": 1.0, "under way": 2.0, "new": 8.0}  # assumption: room of each site, in multiples of the last year's growth
UNDER_WAY = {"land": 12.0, "permit": 12.0, "grid": 12.0}  # assumption: phases begun of the site under way, and quarters since then
RENTED = 0.1  # assumption: share of the used hours that can be rented


@dataclass(frozen=True)
class Known:
    """What was known at the end of a year, as a sites file and a demand file, and the MWh per million hours."""

    year: int
    sites: SitesFile
    demand: DemandFile
    mwh_per_m_hours: float


def history(file: SitesFile) -> dict[str, Any]:
    """For each year of decision, what each policy begins and its result up to the last year of the table; and what was built."""
    table = read_toml(None, "history.toml")
    years = sorted(int(year) for year in table["known"])
    rows = [row for year in years for row in _decided(file, table, year)]
    return {"who": table["who"], "decided": rows, "built": built(table)}


def built(table: dict[str, Any]) -> list[dict[str, Any]]:
    """For each year, the owner's electricity, its mean power, and all its capital outlays."""
    return [
        {"year": one["year"], "mwh": one["mwh"], "mean_mw": one["mwh"] / 8766, "outlays_usd": one["outlays_usd"]}
        for one in table["years"]
    ]


def known_at(file: SitesFile, table: dict[str, Any], year: int) -> Known:
    """What was known at the end of a year. Phases, halls and their prices are those of `file`."""
    then = table["known"][str(year)]
    mwh = {one["year"]: float(one["mwh"]) for one in table["years"] if one["year"] <= year}
    whole = dict.fromkeys(file.phases, LONG)
    chip = Chip(tuple(then["quarters"]), 1.0, (USE,), usd=tuple(then["usd"]), source=then["source"])
    rent = with_fields(file.rent, usd_per_hour=tuple(then["rent_usd_per_hour"]), fall_per_year=0.0, most_hours_per_year=None)
    bare = Place("standing", "US", ((0.0, 1.0),), 1e12, begun=whole)
    made = with_fields(
        file, chips={then["chip"]: chip}, reference=then["chip"], rent=rent, sites=(bare,), revenue={}, limits=type(file.limits)()
    )
    demand = DemandFile(
        quarters=tuple(4.0 * i for i in range(YEARS_AHEAD)),
        end_quarter=4.0 * YEARS_AHEAD,
        training=Training(1.0, 80.0, 80.0, 1.0, (0.0,), source="within use: no share of it was published"),
        growth={USE: Growth(1.0, forecast_growth(list(mwh.values())))},
        branches=(3, 2, 2),
    )
    one = portfolio(made, demand)
    mw, grown = (value / one.sites[0].mwh for value in (mwh[year], mwh[year] - mwh[year - 1]))
    pue, hours = one.sites[0].pue, one.machines[0].hours[1]
    stages = {"ready": whole, "under way": {name: ago for name, ago in UNDER_WAY.items() if name in file.phases}, "new": {}}
    places = (
        with_fields(bare, grid_mw=((0.0, mw * pue),), halls_mw=mw, machines_mw={then["chip"]: mw}),
        *(with_fields(bare, name=name, grid_mw=((0.0, ROOM[name] * grown * pue),), begun=begun) for name, begun in stages.items()),
    )
    rent = with_fields(rent, most_hours_per_year=RENTED * mw * hours * M)
    growth = {USE: with_fields(demand.growth[USE], hours_per_year=mw * hours * M)}
    return Known(year, with_fields(made, sites=places, rent=rent), with_fields(demand, growth=growth), one.sites[0].mwh / hours)


def forecast_growth(use: list[float]) -> tuple[float, float, float]:
    """The growth factor per year (10 %, middle, 90 %): Student's prediction interval for the logarithm of the next one."""
    logs = np.diff(np.log(use))
    spread = stats.t.ppf(0.9, len(logs) - 1) * logs.std(ddof=1) * math.sqrt(1 + 1 / len(logs))
    low, mid, high = np.exp(logs.mean() + spread * np.array([-1, 0, 1]))
    return float(low), float(mid), float(high)


def _decided(file: SitesFile, table: dict[str, Any], year: int) -> list[dict[str, Any]]:
    known = known_at(file, table, year)
    first = View(portfolio(known.sites, known.demand), today(known.demand), known.demand)
    chosen = policies(list(NAIVE), first, known.sites.cvar_share)
    return [{"decided": year, "policy": name, **_result(policy, table, known)} for name, policy in chosen.items()]


def _result(policy: Policy, table: dict[str, Any], known: Known) -> dict[str, Any]:
    """The result of a policy from a year's end to the last year of the table; each year it learns the growth up to then."""
    mwh = {one["year"]: one["mwh"] for one in table["years"] if one["year"] >= known.year}
    p = portfolio(known.sites, known.demand)
    world, needs, begun = World(p, p, Leads.of(known.sites), 4.0 * len(mwh)), [], []
    waiting: list[Begun] = []
    for stage, year in enumerate(mwh):
        quarter, hours = 4.0 * stage, (today(known.demand).hours[0], mwh[year] / known.mwh_per_m_hours)
        demand = _with_growth(known.demand, table, year)
        decided = policy(View(world.view(quarter), State(quarter, hours), demand))
        begun.append(decided)
        waiting = world.begin([*waiting, *decided], quarter)
        needs.append((quarter, np.array(hours)))
    spans = [Span(world, q, start, end, hours) for q, hours in needs for start, end in world.spans(q, q + 4)]
    usd, short = served(spans)
    needed = sum(float(hours.sum()) for _, hours in needs)
    return {
        "begins": [{"site": one.site, "what": one.what, "mw": one.mw} for one in begun[0]],
        "mw_by_year": {str(year): _machines_mw(p, decided) for year, decided in zip(mwh, begun, strict=True)},
        "until": max(mwh),
        "usd": M * (world.usd_m + float(usd.sum())),
        "short_share": float(short.sum()) / needed,
    }


def _machines_mw(p: Portfolio, decided: list[Begun]) -> float:
    return sum(one.mw for one in decided if one.what in {machine.name for machine in p.machines})


def _with_growth(demand: DemandFile, table: dict[str, Any], year: int) -> DemandFile:
    """The demand file with the growth forecast from the years up to `year`."""
    use = [float(one["mwh"]) for one in table["years"] if one["year"] <= year]
    return with_fields(demand, growth={USE: with_fields(demand.growth[USE], per_year=forecast_growth(use))})
