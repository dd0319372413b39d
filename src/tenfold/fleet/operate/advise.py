"""Advice for a fleet that is run by hand: what a policy would do, given the demand so far and its forecast.

The policy itself decides in a short simulation, in which the demand follows the median of the forecast. It is called once in each
bin of ten minutes, as a person would act.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tenfold.fleet.fleet_file import FleetFile
from tenfold.fleet.forecast import AHEAD, LEVELS, fit_demand
from tenfold.fleet.pools import Policy, Pool, Size
from tenfold.fleet.setup import ServiceFacts, Setup, pools_of, recovery, sites_of
from tenfold.fleet.simulation.simulator import Simulation
from tenfold.fleet.traces import BIN_S, read_demand
from tenfold.spec.errors import TenfoldError, nearest


@dataclass
class Recorded:
    """A policy whose resizes of services are recorded. The service has `holds` nodes at the beginning."""

    policy: Policy
    holds: int
    moves: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    begun: bool = False

    def decide(self, now: float, pool: Pool) -> list[Size]:
        if not self.begun:
            self.begun = True
            return [Size(service.name, self.holds) for service in pool.services]
        sizes, held = self.policy.decide(now, pool), {service.name: service.nodes for service in pool.services}
        for size in sizes:
            if size.holder in held and size.nodes != held[size.holder]:
                until = None if size.until is None else size.until - now
                row = {"in_s": now, "service": size.holder, "from": held[size.holder], "to": size.nodes}
                self.moves.append({**row, "lent_for_s": until if size.nodes > held[size.holder] else None, "why": size.why})
        return sizes


def advise(
    file: FleetFile, demand: Path, policy: Policy, *, service: str = "", holds: int | None = None, hours: float = 6.0
) -> dict[str, Any]:  # fmt: skip
    """The moves of one service's nodes in the next `hours`, and the forecast behind them.

    `demand` is a CSV file whose last row is the present. `holds` are the service's present nodes, by default those that it owns.
    Raises TenfoldError where the file has several services and none is named, and for a trace of less than two and a half days.
    """
    name = _service(file, service)
    table = file.services[name]
    rates = read_demand(demand, table.demand_scale)
    quantiles = fit_demand(rates).quantiles(rates, np.array([len(rates) - 1]))[0]
    facts = _to_come(name, file, float(rates[-1]), quantiles)
    recorded = Recorded(policy, table.own if holds is None else holds)
    out = Simulation(_alone(file, facts, hours), recorded).run()
    serving = next(iter(out.meters.values())).serving[0]
    forecast = [
        {"in_s": ahead * BIN_S, **{f"p{100 * level:.0f}": float(rate) for level, rate in zip(LEVELS, row, strict=True)}}
        for ahead, row in zip(AHEAD, quantiles, strict=True)
    ]
    peak = math.ceil(max(row[f"p{100 * LEVELS[-1]:.0f}"] for row in forecast) / table.requests_per_s)
    return {
        "service": name, "rate": float(rates[-1]), "holds": recorded.holds, "needs_at_most": peak, "moves": recorded.moves,
        "forecast": forecast, "missed": serving.missed / serving.asked if serving.asked else 0.0,
    }  # fmt: skip


def _service(file: FleetFile, name: str) -> str:
    if not name and len(file.services) == 1:
        return next(iter(file.services))
    if name not in file.services:
        has = ", ".join(file.services) or "none"
        raise TenfoldError(
            f"The fleet file has the services {has}: name the one whose demand it is by --service{nearest(name, file.services)}."
        )
    return name


def _to_come(name: str, file: FleetFile, now: float, quantiles: np.ndarray) -> ServiceFacts:
    """The service as the simulation sees it. Its rate follows the median of the forecast. The forecasts of later bins have the same
    median, and the same ratio of high quantile to median at each horizon as the present forecast."""
    bins = AHEAD[-1]
    lines = [np.interp(np.arange(1, bins + 1), AHEAD, quantiles[:, level]) for level in range(len(LEVELS))]
    later = np.minimum(np.arange(bins)[:, None] + np.arange(bins)[None, :], bins - 1)
    rates = np.append(lines[0], now)  # `ServiceFacts.at` wraps around: the rate before the first bin is the last one
    middle = np.vstack([lines[0][later], lines[0][later[-1:]]])
    high = middle * (lines[-1] / np.maximum(lines[0], 1e-9))
    return ServiceFacts(name, file.services[name], rates, middle, high)


def _alone(file: FleetFile, service: ServiceFacts, hours: float) -> Setup:
    """A setup of the service's pool alone, without failures and without the nodes that other services own."""
    replace = msgspec.structs.replace
    pool = service.table.pool
    others = sum(one.own for name, one in file.services.items() if one.pool == pool and name != service.name)
    simulation = replace(file.simulation, days=hours / 24, drain_days=0.0, tick_s=BIN_S)
    table = replace(file.pools[pool], nodes=file.pools[pool].nodes - others)
    alone = replace(
        file, pools={pool: table}, services={service.name: service.table}, jobs={},
        sites={table.site: file.sites[table.site]}, simulation=simulation,
    )  # fmt: skip
    pools = {name: dataclasses.replace(one, per_day=0.0) for name, one in pools_of(alone).items()}
    return Setup(alone, pools, sites_of(alone), {service.name: service}, {}, recovery())
