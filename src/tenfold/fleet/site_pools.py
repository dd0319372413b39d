"""Pools of a fleet file as policies see them: services at their owned sizes, the current demand, and the nodes that power
allows."""

import math
from collections.abc import Iterator

from tenfold.fleet.pools import Pool, Service, Size
from tenfold.fleet.setup import HOUR_S, PoolFacts, ServiceFacts, Setup
from tenfold.fleet.traces import BIN_S

SWITCH_S = 60.0  # for a checkpoint or a drain; a pool's switch also takes one tick and the start of its slowest service


def open_pool(setup: Setup, facts: PoolFacts) -> Pool:
    """A pool in which every service has the nodes that it owns."""
    pool = Pool(facts.name, facts.nodes, worth_usd=facts.worth_usd)
    for name, t in setup.file.services.items():
        if t.pool == facts.name:
            pool.services.append(Service(name, t.own, t.requests_per_s, t.start_s, t.least, t.own, bin_s=BIN_S))
            pool.serving += t.own
    pool.switch_s = max((s.start_s for s in pool.services), default=0.0) + SWITCH_S + setup.file.simulation.tick_s
    return pool


def show_demand(service: Service, known: ServiceFacts, now: float) -> None:
    """Set the service's rate and forecasts to those of a known demand at the time `now`, in seconds since its beginning."""
    at = int(now / BIN_S) % len(known.rates)
    service.rate, service.high, service.middle = known.at(now), known.high[at], known.middle[at]
    service.into_s = now % BIN_S


def show_power(pool: Pool, setup: Setup, down: int, now: float, cap_w: float = math.inf) -> None:
    """Set how many nodes the site's power cap allows to be busy, now and until a switch is over, and the energy cost of a
    node-hour.

    `now` is in seconds since the beginning of the year, `down` counts the pool's nodes that are not up, and `cap_w` is a lower cap
    that an operator asked for, in watts. A site's cap is divided among its pools by their peak power.
    """
    facts = setup.pools[pool.name]
    site, tick_s = setup.sites[facts.site], setup.file.simulation.tick_s
    peak = sum(one.peak_w for one in setup.pools.values() if one.site == facts.site)
    hours = [int(now / HOUR_S), int((now + pool.switch_s + tick_s) / HOUR_S)]
    spare = [min(cap_w, site.cap_w[h % 24]) * facts.peak_w / peak - (pool.nodes + down) * facts.idle_w for h in hours]
    allowed = [10**9 if watts == math.inf else int(watts / (facts.busy_w - facts.idle_w)) for watts in spare]
    pool.allowed, pool.allowed_soon = allowed[0], min(allowed)
    usd = site.usd_per_kwh[hours[0] % len(site.usd_per_kwh)]
    usd += site.carbon_usd_per_t * site.kgco2_per_kwh[hours[0] % len(site.kgco2_per_kwh)] / 1000
    pool.energy_usd = facts.busy_w / 1000 * usd


def over_due(now: float, pool: Pool) -> list[Size]:
    """The sizes that bring services whose loans are due back to what they own, whatever the policy decides."""
    due = [service for service in pool.services if service.until is not None and service.until <= now]
    return [Size(service.name, min(service.own, service.nodes), None, "its deadline") for service in due]


def over_cap(pool: Pool) -> Iterator[Size]:
    """Stop jobs, the newest first, while more nodes are busy than the power cap allows.

    The caller must apply each size before it takes the next one.
    """
    for job in sorted(pool.running.values(), key=lambda job: -job.since):
        if pool.training + pool.serving + pool.leaving <= pool.allowed:
            return
        yield Size(job.name, 0, None, "the cap of power", save=False)
