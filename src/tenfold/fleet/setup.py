"""The numbers that a simulation takes from a fleet file: watts, hourly prices and carbon, demand with its forecasts, jobs."""

import itertools
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from tenfold.fleet.fleet_file import FleetFile, JobsTable, PoolTable, ServiceTable
from tenfold.fleet.forecast import AHEAD, DAY, fit_demand, rolling
from tenfold.fleet.pools import Job
from tenfold.fleet.traces import BIN_S, JobRows, draw_jobs, drawn_demand, read_demand, read_jobs
from tenfold.plan.costs.failures import checkpoint_times, component_rates, rate_per_node_day, young_interval
from tenfold.plan.costs.power import board_w
from tenfold.plan.facts import facts
from tenfold.plan.ranges import Range
from tenfold.plan.sites.site import Site, site
from tenfold.plan.workload.profiles import read_carbon, read_prices
from tenfold.spec.accelerator import accelerator
from tenfold.spec.errors import TenfoldError

DAY_S, HOUR_S = 86_400.0, 3_600.0


@dataclass(frozen=True)
class PoolFacts:
    """A pool's nodes: their number, watts when busy and idle (with host, network and PUE), failures per node and day (`per_day`),
    the share of failures that need a repair, the speed relative to the first pool's nodes, and what an hour of a node is worth."""

    name: str
    site: str
    nodes: int
    gpus: int
    busy_w: float
    idle_w: float
    per_day: float
    repair_share: float
    speed: float
    worth_usd: float

    @property
    def peak_w(self) -> float:
        return self.nodes * self.busy_w


@dataclass(frozen=True)
class SiteFacts:
    """Prices and carbon intensity by hour of the year (or day), power caps by hour of the day, and water in litres per kWh."""

    usd_per_kwh: np.ndarray
    kgco2_per_kwh: np.ndarray
    cap_w: np.ndarray
    litres_per_kwh: float
    carbon_usd_per_t: float


@dataclass(frozen=True)
class ServiceFacts:
    """A service's table, its rates [bin] in requests/s, and the forecasts `middle` and `high` [bin, bins ahead] made at each bin's
    start."""

    name: str
    table: ServiceTable
    rates: np.ndarray
    middle: np.ndarray
    high: np.ndarray

    def at(self, now: float) -> float:
        """The rate at a time in seconds, linear between the middles of two bins."""
        bins = now / BIN_S + len(self.rates) - 0.5
        part, index = bins % 1, int(bins)
        return float((1 - part) * self.rates[index % len(self.rates)] + part * self.rates[(index + 1) % len(self.rates)])


@dataclass
class Setup:
    """One fleet, ready to be simulated with any seed."""

    file: FleetFile
    pools: dict[str, PoolFacts]
    sites: dict[str, SiteFacts]
    services: dict[str, ServiceFacts]
    traces: dict[str, JobRows]
    recovery: dict[str, float]
    work_of: "Setup | None" = None  # the setup whose jobs are drawn, where another split of the same fleet is tried


def prepare(file: FleetFile) -> Setup:
    """Read the traces and forecast the demand. Raises TenfoldError where a power cap is too low, or a pool too small for its
    peak."""
    sites, pools = sites_of(file), pools_of(file)
    _check_power(file, sites, pools)
    names, tables = list(file.services), list(file.services.values())
    if len(names) > 1 and file.simulation.days > 60:
        with ProcessPoolExecutor(2) as workers:
            found = list(workers.map(_service, itertools.repeat(file), names, tables, range(len(names))))
    else:
        found = [_service(file, name, table, seed) for seed, (name, table) in enumerate(zip(names, tables, strict=True))]
    services = {one.name: one for one in found}
    for name, pool in pools.items():
        held = [s for s in services.values() if s.table.pool == name]
        peak = sum(math.ceil(s.rates.max() / s.table.requests_per_s) for s in held)
        if peak > pool.nodes:
            who = " and ".join(s.name for s in held)
            raise TenfoldError(
                f"The pool {name} is too small: {who} need {peak:,} nodes at peak, of {pool.nodes:,}: add {peak - pool.nodes:,}."
            )
    traces = {name: read_jobs(Path(t.trace_csv)) for name, t in file.jobs.items()}
    return Setup(file, pools, sites, services, traces, recovery())


def _check_power(file: FleetFile, sites: dict[str, SiteFacts], pools: dict[str, PoolFacts]) -> None:
    """Raises TenfoldError for a power cap below the draw of idle nodes, and for one that never allows a pool its minimum of work:
    the least nodes of its services, and one node for its jobs."""
    for name, facts_ in sites.items():
        here = [pool for pool in pools.values() if pool.site == name]
        idle_w, peak_w = sum(pool.nodes * pool.idle_w for pool in here), sum(pool.peak_w for pool in here)
        if facts_.cap_w.min() < idle_w:
            raise TenfoldError(_raise_cap(name, facts_.cap_w.min(), "its idle nodes draw", idle_w))
        for pool in here:
            least = sum(one.least for one in file.services.values() if one.pool == pool.name)
            jobs = [key for key, table in file.jobs.items() if table.pools == [pool.name]]
            needed_w = (least + bool(jobs)) * (pool.busy_w - pool.idle_w) + pool.nodes * pool.idle_w
            if facts_.cap_w.max() * pool.peak_w / peak_w < needed_w:
                work = " and ".join([f"{least:,} nodes of services"] * (least > 0) + [f"one of {key}" for key in jobs[:1]])
                what = f"{pool.name}, by its share of the peak power, needs for {work}"
                raise TenfoldError(_raise_cap(name, facts_.cap_w.max(), what, needed_w * peak_w / pool.peak_w))


def _raise_cap(site_name: str, cap_w: float, what: str, need_w: float) -> str:
    cap, need = cap_w / 1e6, need_w / 1e6
    return f"The power cap of {site_name} is too low: {cap:.4g} MW, and {what} {need:.4g} MW: raise it by {need - cap:.3g} MW."


def recovery() -> dict[str, float]:
    """The middle values of published ranges for the handling of a failure: `detection_s`, `restart_s`, `repair_h`."""
    table = facts("reliability")["recovery"]
    return {key: Range.of(table[key]).mid for key in ("detection_s", "restart_s", "repair_h")}


def sites_of(file: FleetFile) -> dict[str, SiteFacts]:
    """The facts of each site by name."""
    return {name: _site(file, name, site(t.region, t.pue)) for name, t in file.sites.items()}


def pools_of(file: FleetFile) -> dict[str, PoolFacts]:
    """The facts of each pool by name; speeds are relative to the first pool."""
    first, pue = next(iter(file.pools.values())), {name: site(t.region, t.pue).pue.mid for name, t in file.sites.items()}
    return {name: _pool(name, t, pue[t.site], first) for name, t in file.pools.items()}


def draw_work(setup: Setup, seed: int) -> list[tuple[str, Job]]:
    """The jobs of one simulation as (name of their table, job), in the order of their arrival."""
    setup = setup.work_of or setup
    seconds, found = setup.file.simulation.days * DAY_S, []
    for number, (name, table) in enumerate(setup.file.jobs.items()):
        own = {p: sum(s.table.own for s in setup.services.values() if s.table.pool == p) for p in table.pools}
        free = sum((setup.pools[p].nodes - own[p]) * setup.pools[p].speed for p in table.pools)
        rows, most = setup.traces[name], max(setup.pools[p].nodes - own[p] for p in table.pools)
        sizes = np.clip(np.ceil(rows.gpus * table.nodes_per_gpu), 1, most).astype(int)
        drawn = draw_jobs(rows, seconds, table.load * free * seconds, sizes.tolist(), 1000 * seed + number)
        errors = np.exp(np.random.default_rng([seed, 2, number]).normal(0, table.estimate_error, len(drawn)))
        for i in range(len(drawn)):
            found.append((name, _job(setup, f"{name}-{i}", table, drawn, i, float(errors[i]))))
    return sorted(found, key=lambda row: row[1].came)


def _job(setup: Setup, name: str, table: JobsTable, rows: JobRows, i: int, error: float) -> Job:
    least, gpus = int(rows.gpus[i]), setup.pools[table.pools[0]].gpus
    most = max(least, int(least * table.most)) if least >= table.elastic_from else least
    save, interval = _checkpoint(least, gpus, table.state_gb_per_node)
    return Job(
        name, least, most, float(rows.came[i]), float(rows.seconds[i]), save_s=save, scaling=table.scaling, estimate=error,
        restart_s=setup.recovery["restart_s"] if least * gpus > 8 else 60.0,
        interval_s=max(save, min(table.longest_interval_s, interval)),
    )  # fmt: skip


@cache
def _checkpoint(nodes: int, gpus: int, state_gb_per_node: float) -> tuple[float, float]:
    """Seconds until a checkpoint of the job is on storage, and Young's interval between checkpoints."""
    stall, write = checkpoint_times(1e9 * state_gb_per_node * nodes, nodes * gpus, nodes)
    mtti_s = DAY_S / (nodes * rate_per_node_day(gpus).mid)
    return stall.mid + write.mid, young_interval(stall.mid, mtti_s)


def _site(file: FleetFile, name: str, place: Site) -> SiteFacts:
    table = file.sites[name]
    price = read_prices(Path(table.price_csv)) if table.price_csv else np.full(24, place.usd_per_kwh.mid)
    carbon = read_carbon(Path(table.carbon_csv)).kgco2_per_kwh if table.carbon_csv else np.full(24, place.kgco2_per_kwh.mid)
    cap = np.inf if table.power_cap_mw is None else np.asarray(table.power_cap_mw) * 1e6
    water = place.water_off_site_l_per_kwh.mid + place.wue_l_per_kwh.mid / place.pue.mid
    return SiteFacts(price, carbon, np.resize(cap, 24), water, table.carbon_usd_per_t)


def _pool(name: str, table: PoolTable, pue: float, first: PoolTable) -> PoolFacts:
    part, gpus = accelerator(table.accelerator), table.accelerators_per_node
    power, tdp = facts("power"), part.tdp_w or 0.0
    host, rest = tdp * power["host"]["mean"][1], pue * gpus / (1 - power["network"]["share"][1])
    rates, known = component_rates(gpus), facts("reliability")["components"]["counts"]
    repaired = sum(rate for cause, rate in rates.items() if known[cause]["needs_repair"]) / sum(rates.values())
    published = facts("prices")["rent_usd_per_h"].get(part.key, {"usd": math.inf})["usd"]
    rent = Range.of(published) if part.rent_usd_per_h is None else Range.of(part.rent_usd_per_h)
    one = accelerator(first.accelerator)
    return PoolFacts(
        name=name,
        site=table.site,
        nodes=table.nodes,
        gpus=gpus,
        busy_w=rest * (board_w(part, 1.0).mid + host),
        idle_w=rest * (tdp * power["board"]["idle"][1] + host),
        per_day=rate_per_node_day(gpus).mid,
        repair_share=repaired,
        speed=part.bf16_tflops * gpus / (one.bf16_tflops * first.accelerators_per_node),
        worth_usd=gpus * (rent.mid if math.isfinite(rent.mid) else 1e9),
    )


def _service(file: FleetFile, name: str, table: ServiceTable, seed: int) -> ServiceFacts:
    """The demand of a simulation and its forecasts. The demand is drawn with a history before it, to which the first forecast is
    fitted."""
    before, bins = round(file.simulation.history_days * DAY), math.ceil(file.simulation.days * DAY)
    trace = read_demand(Path(table.demand_csv), table.demand_scale)
    rates = drawn_demand(trace, before + bins, seed)
    every = DAY if bins <= 35 * DAY else 28 * DAY
    quantiles = forecasts(rates, before, every)[:-1]
    lines = np.stack([np.interp(np.arange(1, AHEAD[-1] + 1), AHEAD, one) for one in np.eye(len(AHEAD))])
    grid = [quantiles[..., level] @ lines for level in (0, 1)]
    return ServiceFacts(name, table, rates[before:], grid[0].astype(np.float32), grid[1].astype(np.float32))


def forecasts(rates: np.ndarray, before: int, every: int) -> np.ndarray:
    """Forecasts [bin, horizon, level] made at the end of bin `before - 1` and of each bin after it."""
    first = fit_demand(rates[:before]).quantiles(rates, np.array([before - 1]))
    return np.concatenate([first, rolling(rates, before, every)])
