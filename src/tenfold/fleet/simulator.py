"""A fleet simulated event by event: jobs come, work and end, services follow their demand, nodes fail, a policy chooses sizes.

Deterministic for a seed. Nothing is drawn but jobs, failures and the errors of guesses, each from a stream of its own, so that
every policy meets the same work and the same demand.
"""

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tenfold.fleet.meter import Meter, Serving
from tenfold.fleet.pools import Job, Policy, Pool, Service, Size
from tenfold.fleet.setup import DAY_S, HOUR_S, PoolFacts, Setup, draw_work
from tenfold.fleet.traces import BIN_S

SWITCH_S = 60.0  # of a pool, beside a look and the start of its slowest service: a checkpoint or a drain


@dataclass
class Outcome:
    """What came of one simulation: jobs as (came, began or None, ended or None, nodes), lost node-seconds by cause, the meters,
    the highest watts of all pools together at a tick, and the day as a series of rows."""

    jobs: list[tuple[float, float | None, float | None, int]] = field(default_factory=list)
    lost_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("policy", "failures"), 0.0))
    moves: int = 0
    stops: int = 0
    events: int = 0
    meters: dict[str, Meter] = field(default_factory=dict)
    peak_w: float = 0.0
    series: list[tuple[float, ...]] = field(default_factory=list)


class Simulation:
    """One run. `sample_s` is the distance of the rows of the series."""

    def __init__(self, setup: Setup, policy: Policy, seed: int = 0, sample_s: float = 600.0):
        self._setup, self._policy, self._table = setup, policy, setup.file.simulation
        self._end, self._sample_s = self._table.days * DAY_S, sample_s
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order, self.out = itertools.count(), Outcome()
        self._draw = np.random.default_rng([seed, 1])
        self._pools = {name: self._open(facts) for name, facts in setup.pools.items()}
        self._queued = dict.fromkeys(self._pools, 0.0)  # node-seconds that wait
        self._work, self._next, self._ended = draw_work(setup, seed), 0, 0

    def run(self) -> Outcome:
        """Until the end of the time, and of the jobs where they may drain."""
        for meter in self.out.meters.values():
            self._at(self._draw.exponential(self._failure_s(meter)), self._fail, meter)
        if self._work:
            self._at(self._work[0][1].came, self._arrive)
        self._at(0.0, self._tick)
        events, last = self._events, self._end + self._table.drain_days * DAY_S
        while events and events[0][0] <= last:
            now, _, happen, arguments = heapq.heappop(events)
            if now > self._end and self._ended == len(self._work):
                break
            happen(now, *arguments)
            self.out.events += 1
        over = [
            (job.came, job.begun, None, job.least)
            for pool in self._pools.values()
            for job in (*pool.running.values(), *pool.waiting)
        ]
        self.out.jobs += over
        return self.out

    def _at(self, when: float, happen: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (when, next(self._order), happen, arguments))

    def _open(self, facts: PoolFacts) -> Pool:
        """A pool with every service at its own size."""
        pool = Pool(facts.name, facts.nodes, worth_usd=facts.worth_usd)
        servings = []
        for known in self._setup.services.values():
            if known.table.pool == facts.name:
                t = known.table
                service = Service(known.name, t.own, t.requests_per_s, t.start_s, t.least, t.own, bin_s=BIN_S)
                pool.services.append(service)
                servings.append(Serving(service, ready=t.own))
                pool.serving += t.own
        pool.switch_s = max((s.start_s for s in pool.services), default=0.0) + SWITCH_S + self._table.tick_s
        self.out.meters[facts.name] = Meter(facts, self._setup.sites[facts.site], pool, servings)
        return pool

    def _tick(self, now: float) -> None:
        """Pay, move the demand on, let the policy look, keep the cap, write a row."""
        if now + self._table.tick_s <= self._end + self._table.drain_days * DAY_S:
            self._at(now + self._table.tick_s, self._tick)
        into, index = now % BIN_S, int(now / BIN_S)
        if now <= self._end:
            self.out.peak_w = max(self.out.peak_w, self._watts())
        for meter in self.out.meters.values():
            if now <= self._end:
                meter.advance(now)
                meter.settle(now)
            self._power(meter, now)
            for serving in meter.serving:
                known, service = self._setup.services[serving.service.name], serving.service
                at = index % len(known.rates)
                service.rate, service.high, service.middle = known.at(now), known.high[at], known.middle[at]
                service.into_s = into
                if service.until is not None and service.until <= now:
                    self._size_service(
                        now, meter, serving, Size(service.name, min(service.own, service.nodes), None, "its deadline")
                    )
            meter.pool.periodic = True
            self._decide(now, meter)
            meter.pool.periodic = False
            self._keep_cap(now, meter)
        if now <= self._end and now % self._sample_s < self._table.tick_s:
            self._row(now)

    def _power(self, meter: Meter, now: float) -> None:
        """How many nodes the site's cap lets work, at this moment and until a switch is over, and what an hour's energy costs."""
        facts, site, pool = meter.facts, meter.site, meter.pool
        peak = sum(one.peak_w for one in self._setup.pools.values() if one.site == facts.site)
        hours = [int(now / HOUR_S), int((now + pool.switch_s + self._table.tick_s) / HOUR_S)]
        spare = [site.cap_w[h % 24] * facts.peak_w / peak - (pool.nodes + meter.down) * facts.idle_w for h in hours]
        allowed = [10**9 if watts == math.inf else int(watts / (facts.busy_w - facts.idle_w)) for watts in spare]
        pool.allowed, pool.allowed_soon = allowed[0], min(allowed)
        usd = site.usd_per_kwh[hours[0] % len(site.usd_per_kwh)]
        usd += site.carbon_usd_per_t * site.kgco2_per_kwh[hours[0] % len(site.kgco2_per_kwh)] / 1000
        pool.energy_usd = facts.busy_w / 1000 * usd

    def _keep_cap(self, now: float, meter: Meter) -> None:
        """Stop jobs where a cap came down and the policy gave nothing back, the newest first."""
        pool = meter.pool
        for job in sorted(pool.running.values(), key=lambda job: -job.since):
            if pool.training + pool.serving + pool.leaving <= pool.allowed:
                return
            self._size_job(now, meter, job, Size(job.name, 0, None, "the cap of power", save=False))
        if pool.training + pool.serving + pool.leaving > pool.allowed:
            meter.over_cap_s += self._table.tick_s

    def _decide(self, now: float, meter: Meter) -> None:
        """Ask the policy, and carry out what may be."""
        pool = meter.pool
        waiting: dict[str, Job] | None = None
        for size in self._policy.decide(now, pool):
            serving = next((s for s in meter.serving if s.service.name == size.holder), None)
            if serving is not None:
                self._size_service(now, meter, serving, size)
                continue
            if (job := pool.running.get(size.holder)) is None:
                waiting = {job.name: job for job in pool.waiting} if waiting is None else waiting
                job = waiting.get(size.holder)
            if job is not None:
                self._size_job(now, meter, job, size)

    def _size_service(self, now: float, meter: Meter, serving: Serving, size: Size) -> None:
        service = serving.service
        meter.advance(min(now, self._end))
        more = meter.pool.size_service(service, size)
        if more > 0:
            serving.starting += more
            self._at(now + service.start_s, self._ready, meter, serving, more)
        else:
            starting = min(-more, serving.starting)
            serving.starting -= starting
            serving.called_off += starting
            serving.ready += more + starting
        self.out.moves += more != 0

    def _size_job(self, now: float, meter: Meter, job: Job, size: Size) -> None:
        pool = meter.pool
        meter.advance(min(now, self._end))
        resized = pool.size_job(now, job, size)
        if resized is None:
            return
        self.out.lost_s["policy"] += resized.lost_s
        self.out.moves += 1
        if resized.leaving:
            self._at(now + resized.save_s, self._freed, meter, resized.leaving)
        if not resized.had:
            self._queued[pool.name] -= job.least * job.work_s
        self._goes_on(meter, job)
        self.out.stops += not resized.nodes

    def _goes_on(self, meter: Meter, job: Job) -> None:
        """It will end in its time where it has nodes, and is in the line where it has none."""
        if job.nodes:
            self._at(job.begins + job.work_s / job.speed(job.nodes), self._finish, meter, job, job.version)
        else:
            self._queued[meter.pool.name] += job.least * job.work_s

    def _arrive(self, now: float) -> None:
        name, job = self._work[self._next]
        self._next += 1
        if self._next < len(self._work):
            self._at(self._work[self._next][1].came, self._arrive)
        fitting = [p for p in self._setup.file.jobs[name].pools if self._setup.pools[p].nodes >= job.least]
        pools = [p for p in fitting if self._setup.pools[p].nodes - self._pools[p].own >= job.least] or fitting
        best = min(pools, key=lambda p: (self._queued[p] - max(0, self._pools[p].room)) / self._setup.pools[p].nodes)
        job.work_s /= self._setup.pools[best].speed
        self._queued[best] += job.least * job.work_s
        self._pools[best].waiting.append(job)
        self._decide(now, self.out.meters[best])

    def _finish(self, now: float, meter: Meter, job: Job, version: int) -> None:
        if job.version != version:
            self.out.events -= 1  # it was moved since
            return
        meter.advance(min(now, self._end))
        meter.pool.finish(job)
        self._ended += 1
        self.out.jobs.append((job.came, job.begun, now, job.least))
        self._decide(now, meter)

    def _freed(self, now: float, meter: Meter, nodes: int) -> None:
        meter.advance(min(now, self._end))
        meter.pool.leaving -= nodes
        self._decide(now, meter)

    def _ready(self, now: float, meter: Meter, serving: Serving, nodes: int) -> None:
        meter.advance(min(now, self._end))
        off = min(nodes, serving.called_off)
        serving.called_off -= off
        serving.starting -= nodes - off
        serving.ready += nodes - off

    def _failure_s(self, meter: Meter) -> float:
        return DAY_S / max(1e-9, meter.pool.nodes * meter.facts.per_day)

    def _fail(self, now: float, meter: Meter) -> None:
        """A node of the pool fails: whoever holds it loses it."""
        pool, facts = meter.pool, meter.facts
        self._at(now + self._draw.exponential(self._failure_s(meter)), self._fail, meter)
        meter.advance(min(now, self._end))
        at = self._draw.random() * pool.nodes
        repaired = self._draw.random() < facts.repair_share
        if repaired and pool.nodes > 1:
            pool.nodes -= 1
            meter.down += 1
            self._at(now + self._draw.exponential(self._setup.recovery["repair_h"] * HOUR_S), self._repaired, meter)
        for job in list(pool.running.values()):
            at -= job.nodes
            if at < 0:
                return self._hit(now, meter, job)
        for serving in meter.serving:
            at -= serving.ready
            if at < 0:
                serving.ready -= 1
                serving.starting += 1
                back = serving.service.start_s if pool.room >= 0 else self._setup.recovery["restart_s"]
                self._at(now + self._setup.recovery["detection_s"] + back, self._ready, meter, serving, 1)
                return None
        return None

    def _hit(self, now: float, meter: Meter, job: Job) -> None:
        """A job loses what it did since its checkpoint, and goes on: with another node, with fewer, or from the line."""
        self.out.lost_s["failures"] += meter.pool.hit(now, job, self._setup.recovery["detection_s"])
        self._goes_on(meter, job)
        self._decide(now, meter)

    def _repaired(self, now: float, meter: Meter) -> None:
        meter.advance(min(now, self._end))
        meter.pool.nodes += 1
        meter.down -= 1
        self._decide(now, meter)

    def _watts(self) -> float:
        return sum(meter.watts() for meter in self.out.meters.values())

    def _row(self, now: float) -> None:
        meters = self.out.meters.values()
        servings = [serving for meter in meters for serving in meter.serving]
        cap = sum(self._setup.sites[name].cap_w[int(now / HOUR_S) % 24] for name in self._setup.sites)
        self.out.series.append((
            now / HOUR_S, sum(m.pool.training for m in meters), sum(s.ready for s in servings), sum(s.starting for s in servings),
            sum(m.pool.leaving for m in meters), sum(m.pool.nodes for m in meters), sum(m.down for m in meters),
            sum(s.service.rate for s in servings), sum(float(s.service.middle[5]) for s in servings),
            sum(float(s.service.high[5]) for s in servings), sum(s.ready * s.service.per_node for s in servings),
            self._watts(), cap,
        ))  # fmt: skip
