"""The policy `lend`: nodes go where the forecast says that they are needed, each loan with a date of return and a price.

Services hold what the high quantile of their demand needs until a switch would be over, and lend the rest to jobs until the
forecast wants it back. What is given back is taken where it costs the least work, at a checkpoint written for it.
"""

import math
from dataclasses import dataclass

from tenfold.fleet.pools import Job, Pool, Service, Size
from tenfold.fleet.queueing import grown, reclaim, shrink, start


@dataclass(frozen=True)
class Lending:
    """A service has nodes for the high quantile, and for the rate of the moment at a share `load` of what they answer.

    It shrinks to what it needs over `hold` switches, with `gap` of a node to spare, so that nothing flaps. A loan lasts `longest_s`
    at most.

    A job starts on borrowed nodes where it ends before their return, or works `pays` times as long as its switch takes. An elastic
    job gets more nodes where that saves `pays` times what its restart costs, unless their energy costs more than they are worth; a
    share `reserve` of the nodes is left to those that come.
    """

    load: float = 0.9
    gap: float = 0.15
    hold: float = 2.0
    reserve: float = 0.02
    longest_s: float = 6 * 3600.0
    pays: float = 4.0

    def decide(self, now: float, pool: Pool) -> list[Size]:
        sizes = [size for service in pool.services if (size := self._service(now, pool, service))] if pool.periodic else []
        more, soon = grown(pool, sizes), max(0, pool.serving + pool.training - pool.allowed_soon)
        short = max(more - pool.room, soon if pool.periodic else 0) - pool.leaving
        if short > 0 and pool.periodic:
            why = "power will be short" if soon > more - pool.room else "a service needs it"
            jobs = sorted(pool.running.values(), key=lambda job: job.left_s(now))
            return reclaim(jobs, short, lambda job: _price(now, job), True, why) + sizes
        room = min(pool.room, pool.room - soon) - more
        if room <= 0 or (pool.leaving and not pool.waiting):
            return sizes
        if pool.waiting:
            return sizes + self._start(now, pool, room)
        return sizes + (self._extra(now, pool, room) if pool.periodic and pool.energy_usd <= pool.worth_usd else [])

    def _service(self, now: float, pool: Pool, service: Service) -> Size | None:
        """What the service should hold where that is not what it does."""
        rising = service.highest(pool.switch_s, self.load)
        if (needs := service.needs(rising)) > service.nodes:
            why = f"nodes for {rising:.4g} requests/s are needed, and there are {service.nodes} x {service.per_node:.4g}"
            return Size(service.name, needs, self._until(now, pool, service), why)
        if service.until is not None and service.until <= now + 2 * pool.switch_s and needs > service.own:
            return Size(service.name, service.nodes, self._until(now, pool, service), "it is needed longer")
        settled = service.highest(self.hold * pool.switch_s, self.load)
        keeps = max(service.least, math.ceil(settled / service.per_node + self.gap / self.load + 1e-9))
        if keeps < service.nodes:
            return Size(service.name, keeps, None, f"{settled:.4g} requests/s need it no more")
        return None

    def _until(self, now: float, pool: Pool, service: Service) -> float:
        """When the demand is expected to need no more than the service holds, with the time to come and to leave."""
        enough = (service.nodes - self.gap / self.load) * service.per_node
        over = [i for i, rate in enumerate(service.high) if rate > enough]
        needed = max(2 * pool.switch_s, service.bin_s * (max(over, default=0) + 1) - service.into_s)
        return now + min(self.longest_s, math.ceil(needed + pool.leave_s))

    def _start(self, now: float, pool: Pool, room: int) -> list[Size]:
        """Start jobs, shortest first; where none fits, take what elastic jobs have beyond their least."""
        waiting = sorted(pool.waiting, key=lambda job: job.left_s(now))
        lent = _lent(pool)

        def fits(job: Job) -> bool:
            spare = room - job.least
            lasts = next((seconds for seconds, wanted in lent if wanted > spare), math.inf)
            return lasts >= min(job.left_s(now), self.pays * (job.save_s + job.restart_s))

        started, _ = start(waiting, room, fits)
        elastic = sum(job.nodes - job.least for job in pool.running.values())
        if not started and not pool.leaving and room < waiting[0].least <= room + elastic:
            return shrink(pool.running.values(), waiting[0].least - room, "a job waits")[0]
        return started

    def _extra(self, now: float, pool: Pool, room: int) -> list[Size]:
        """Give what nobody waits for to the elastic jobs that it saves most time."""
        soon = (wanted for seconds, wanted in _lent(pool) if seconds <= self.hold * pool.switch_s)
        room -= max(soon, default=0) + math.ceil(self.reserve * pool.nodes)
        sizes: list[Size] = []
        jobs = [job for job in pool.running.values() if job.nodes < job.most and now >= job.begins]
        for job in sorted(jobs, key=lambda job: (-job.left_s(now) / job.nodes, job.name)):
            more = min(job.most - job.nodes, room)
            left, again = job.left_s(now), job.save_s + job.restart_s
            if more > 0 and left / job.speed(job.nodes) - left / job.speed(job.nodes + more) > self.pays * again:
                sizes.append(Size(job.name, job.nodes + more, None, "nobody waits for them"))
                room -= more
        return sizes


def _price(now: float, job: Job) -> float:
    """Node-seconds that are lost when the job is stopped at a checkpoint written for it: a job that starts loses its start."""
    starting = job.begins - now if now < job.begins else 0.0
    return job.least * (job.save_s + job.restart_s + starting)


def _lent(pool: Pool) -> list[tuple[float, int]]:
    """(seconds from this moment, nodes that services will want beyond those that they hold), by bins of the forecast."""
    bins = max((len(service.high) for service in pool.services), default=0)
    found = []
    for i in range(bins):
        more = sum(max(0, s.needs(s.high[i]) - s.nodes) for s in pool.services if i < len(s.high))
        found.append((i * pool.services[0].bin_s - pool.services[0].into_s, more))
    return found
