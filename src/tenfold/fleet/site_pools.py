"""Pools of a fleet file as policies see them: services at their own sizes, the demand of the moment, and what power allows."""

import math
from collections.abc import Iterator

from tenfold.fleet.pools import Pool, Service, Size
from tenfold.fleet.setup import HOUR_S, PoolFacts, ServiceFacts, Setup
from tenfold.fleet.traces import BIN_S

SWITCH_S = 60.0  # of a pool, beside a look and the start of its slowest service: a checkpoint or a drain


def open_pool(setup: Setup, facts: PoolFacts) -> Pool:
    """A pool with every service at its own size."""
    pool = Pool(facts.name, facts.nodes, worth_usd=facts.worth_usd)
    for name, t in setup.file.services.items():
        if t.pool == facts.name:
            pool.services.append(Service(name, t.own, t.requests_per_s, t.start_s, t.least, t.own, bin_s=BIN_S))
            pool.serving += t.own
    pool.switch_s = max((s.start_s for s in pool.services), default=0.0) + SWITCH_S + setup.file.simulation.tick_s
    return pool


def show_demand(service: Service, known: ServiceFacts, now: float) -> None:
    """Let the service have the rate of a moment of a known demand, and the forecasts that were made for it."""
    at = int(now / BIN_S) % len(known.rates)
    service.rate, service.high, service.middle = known.at(now), known.high[at], known.middle[at]
    service.into_s = now % BIN_S


def show_power(pool: Pool, setup: Setup, down: int, now: float, cap_w: float = math.inf) -> None:
    """How many nodes the site's cap lets work, at this moment and until a switch is over, and what an hour's energy costs.

    `now` is in seconds since the year began; `down` nodes of the pool's are not up; an operator may wish a lower cap, `cap_w`.
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
    """Services whose loans are due go back to what they own, whatever a policy says."""
    due = [service for service in pool.services if service.until is not None and service.until <= now]
    return [Size(service.name, min(service.own, service.nodes), None, "its deadline") for service in due]


def over_cap(pool: Pool) -> Iterator[Size]:
    """Stop jobs, the newest first, as long as more nodes are busy than the cap lets work: each size is to be carried out before
    the next is asked for."""
    for job in sorted(pool.running.values(), key=lambda job: -job.since):
        if pool.training + pool.serving + pool.leaving <= pool.allowed:
            return
        yield Size(job.name, 0, None, "the cap of power", save=False)
