"""A discrete-event simulation of a fleet: jobs arrive, run and end, services follow their demand, nodes fail, a policy sets sizes.

It is deterministic for a seed. Jobs, failures and the errors of owners' estimates are drawn from random streams of their own, so
that every policy has the same work and demand.
"""

import heapq
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from tenfold.fleet.pools import Job, Policy, Pool, Size
from tenfold.fleet.setup import DAY_S, HOUR_S, PoolFacts, Setup, draw_work
from tenfold.fleet.simulation.meter import Meter, Serving
from tenfold.fleet.simulation.outcome import Moved, Outcome, Recorded, Row, busiest_day_s
from tenfold.fleet.site_pools import open_pool, over_cap, over_due, show_demand, show_power


class Simulation:
    """One simulation. A sample is kept every `sample_s` seconds. Jobs and failures are drawn, unless `recorded` has them."""

    def __init__(
        self, setup: Setup, policy: Policy, seed: int = 0, sample_s: float = 600.0, recorded: Recorded | None = None
    ):  # fmt: skip
        self._setup, self._policy, self._table = setup, policy, setup.file.simulation
        self._end, self._sample_s = self._table.days * DAY_S, sample_s
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order, self.out = itertools.count(), Outcome(busiest_s=busiest_day_s(setup))
        self._draw = np.random.default_rng([seed, 1])
        self._pools = {name: self._open(facts) for name, facts in setup.pools.items()}
        self._queued = dict.fromkeys(self._pools, 0.0)  # node-seconds of waiting jobs
        self._recorded, self._next, self._ended = recorded, 0, 0
        self._work = recorded.work if recorded else draw_work(setup, seed)

    def run(self) -> Outcome:
        """Simulate `days`, and then up to `drain_days` until all jobs have ended. Node-seconds, energy and requests are counted in
        `days` only."""
        for when, pool, holder, back_s in self._recorded.failures if self._recorded else ():
            self._at(when, self._lose, self.out.meters[pool], holder, back_s)
        for meter in () if self._recorded else self.out.meters.values():
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
        pool = open_pool(self._setup, facts)
        servings = [Serving(service, ready=service.nodes) for service in pool.services]
        self.out.meters[facts.name] = Meter(facts, self._setup.sites[facts.site], pool, servings)
        return pool

    def _tick(self, now: float) -> None:
        """A periodic tick: account for energy, update demand and power, call the policy, enforce the cap, keep a sample."""
        if now + self._table.tick_s <= self._end + self._table.drain_days * DAY_S:
            self._at(now + self._table.tick_s, self._tick)
        if now <= self._end:
            self.out.peak_w = max(self.out.peak_w, self._watts())
        for meter in self.out.meters.values():
            if now <= self._end:
                meter.advance(now)
                meter.settle(now)
            show_power(meter.pool, self._setup, meter.down, now)
            for serving in meter.serving:
                show_demand(serving.service, self._setup.services[serving.service.name], now)
            for size in over_due(now, meter.pool):
                self._size_service(now, meter, next(s for s in meter.serving if s.service.name == size.holder), size)
            meter.pool.periodic = True
            self._decide(now, meter)
            meter.pool.periodic = False
            self._keep_cap(now, meter)
        if now <= self._end and now % self._sample_s < self._table.tick_s:
            self._row(now)

    def _keep_cap(self, now: float, meter: Meter) -> None:
        """Stop jobs where the power cap fell and the policy did not release enough nodes."""
        pool = meter.pool
        for size in over_cap(pool):
            self._size_job(now, meter, pool.running[size.holder], size)
        if now <= self._end and pool.training + pool.serving + pool.leaving > pool.allowed:
            meter.over_cap_s += self._table.tick_s

    def _decide(self, now: float, meter: Meter) -> None:
        """Call the policy, and carry out its sizes as far as possible."""
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
        service, had = serving.service, serving.service.nodes
        meter.advance(min(now, self._end))
        more = meter.pool.size_service(service, size)
        self.out.keep(Moved(now, meter.pool.name, service.name, had, service.nodes, service.until, size.why))
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
        self.out.keep(Moved(now, pool.name, job.name, resized.had, resized.nodes, job.until, size.why))
        self._count_lost(now, "policy", resized.lost_s)
        self.out.moves += 1
        if resized.leaving:
            self._at(now + resized.save_s, self._freed, meter, resized.leaving)
        if not resized.had:
            self._queued[pool.name] -= job.least * job.work_s
        self._goes_on(meter, job)
        self.out.stops += not resized.nodes

    def _count_lost(self, now: float, cause: str, lost_s: float) -> None:
        """Count lost node-seconds in the same days as the meters count node-seconds: not in `drain_days`."""
        if now <= self._end:
            self.out.lost_s[cause] += lost_s

    def _goes_on(self, meter: Meter, job: Job) -> None:
        """Schedule the job's end where it has nodes, or count it as waiting where it has none."""
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
            self.out.events -= 1  # the job was resized since, so that this event is obsolete
            return
        meter.advance(min(now, self._end))
        self.out.keep(Moved(now, meter.pool.name, job.name, job.nodes, 0, None, "it has ended"))
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
        """A random node of the pool fails."""
        pool, facts = meter.pool, meter.facts
        self._at(now + self._draw.exponential(self._failure_s(meter)), self._fail, meter)
        at = self._draw.random() * pool.nodes
        repaired = self._draw.random() < facts.repair_share and pool.nodes > 1
        back_s = self._draw.exponential(self._setup.recovery["repair_h"] * HOUR_S) if repaired else 0.0
        held = [(job.name, job.nodes) for job in pool.running.values()]
        for name, nodes in [*held, *((serving.service.name, serving.ready) for serving in meter.serving)]:
            at -= nodes
            if at < 0:
                return self._lose(now, meter, name, back_s)
        return self._lose(now, meter, "", back_s)

    def _lose(self, now: float, meter: Meter, holder: str, back_s: float) -> None:
        """A node of `holder` fails. It is back after a repair of `back_s` seconds, or at once where that is 0."""
        pool = meter.pool
        meter.advance(min(now, self._end))
        if back_s:
            pool.nodes -= 1
            meter.down += 1
            self._at(now + back_s, self._repaired, meter)
        if (job := pool.running.get(holder)) is not None:
            return self._hit(now, meter, job)
        for serving in meter.serving:
            if serving.service.name == holder:
                serving.ready -= 1
                serving.starting += 1
                back = serving.service.start_s if pool.room >= 0 else self._setup.recovery["restart_s"]
                self._at(now + self._setup.recovery["detection_s"] + back, self._ready, meter, serving, 1)
        return None

    def _hit(self, now: float, meter: Meter, job: Job) -> None:
        """A job loses its work since its last checkpoint. It continues with another node or with fewer, or waits in the queue."""
        had = job.nodes
        self._count_lost(now, "failures", meter.pool.hit(now, job, self._setup.recovery["detection_s"]))
        self.out.keep(Moved(now, meter.pool.name, job.name, had, job.nodes, job.until, "a node failed"))
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
        self.out.series.append(Row(
            now / HOUR_S, sum(m.pool.training for m in meters), sum(s.ready for s in servings), sum(s.starting for s in servings),
            sum(m.pool.leaving for m in meters), sum(m.pool.nodes for m in meters), sum(m.down for m in meters),
            sum(s.service.rate for s in servings), sum(float(s.service.middle[5]) for s in servings),
            sum(float(s.service.high[5]) for s in servings), sum(s.ready * s.service.per_node for s in servings),
            self._watts(), cap,
        ))  # fmt: skip
