"""The policy `lend`: nodes go where the forecast needs them; each loan has a deadline, and the cheapest jobs give nodes back.

Services hold the nodes for the high quantile of their demand until a switch would be over, and lend the others to jobs until the
forecast needs them back. Nodes are taken back from the jobs that lose the least work by it, after a checkpoint.
"""

import math
from dataclasses import dataclass

import numpy as np

from tenfold.fleet.policies.queueing import grown, reclaim, shrink, start
from tenfold.fleet.pools import Job, Pool, Service, Size


@dataclass(frozen=True)
class Lending:
    """A service has nodes for the high quantile of its forecast, and for its present rate at a share `load` of their throughput.

    It shrinks to what it needs during the next `hold` switches, with `gap` of a node to spare, so that sizes do not oscillate. A
    loan to a service lasts `longest_s` seconds at most.

    A job starts on borrowed nodes where it finishes before they are needed back, or can run `pays` times as long as it takes to
    save and restart. An elastic job grows where that saves at least `pays` times the time of its restart, unless a node-hour costs
    more energy than it is worth; a share `reserve` of the pool stays free for jobs that arrive.
    """

    load: float = 0.9
    gap: float = 0.15
    hold: float = 2.0
    reserve: float = 0.05
    longest_s: float = 6 * 3600.0
    pays: float = 4.0

    def decide(self, now: float, pool: Pool) -> list[Size]:
        sizes = [size for service in pool.services if (size := self._service(now, pool, service))]
        more, soon = grown(pool, sizes), max(0, pool.serving + pool.training - pool.allowed_soon)
        short = max(more - pool.room, soon if pool.periodic else 0) - pool.leaving
        if short > 0:
            why = "power will be short" if soon > more - pool.room else "a service needs it"
            jobs = sorted(pool.running.values(), key=lambda job: job.left_s(now))
            return reclaim(jobs, short, lambda job: _price(now, job), True, why) + sizes
        room = min(pool.room, pool.room - soon) - more
        if not pool.waiting and (room <= 0 or pool.leaving):
            return sizes
        if pool.waiting:
            return sizes + self._start(now, pool, room)
        return sizes + (self._extra(now, pool, room) if pool.periodic and pool.energy_usd <= pool.worth_usd else [])

    def _service(self, now: float, pool: Pool, service: Service) -> Size | None:
        """The size that the service should have; None where it need not change."""
        rising = service.highest(pool.switch_s, self.load)
        if (needs := service.needs(rising)) > service.nodes:
            why = f"nodes for {rising:.4g} requests/s are needed, and it has {service.nodes} x {service.per_node:.4g}"
            return Size(service.name, needs, self._until(now, pool, service), why)
        if not pool.periodic:
            return None
        if service.until is not None and service.until <= now + 2 * pool.switch_s and needs > service.own:
            return Size(service.name, service.nodes, self._until(now, pool, service), "the loan is needed longer")
        settled = service.highest(self.hold * pool.switch_s, self.load)
        keeps = max(service.least, math.ceil(settled / service.per_node + self.gap / self.load + 1e-9))
        if keeps < service.nodes:
            return Size(service.name, keeps, None, f"{settled:.4g} requests/s need no more nodes")
        return None

    def _until(self, now: float, pool: Pool, service: Service) -> float:
        """The deadline of a loan: when the forecast no longer exceeds the service's present nodes, plus the time to leave."""
        enough = (service.nodes - self.gap / self.load) * service.per_node
        over = [i for i, rate in enumerate(service.high) if rate > enough]
        needed = max(2 * pool.switch_s, service.bin_s * (max(over, default=0) + 1) - service.into_s)
        return now + min(self.longest_s, math.ceil(needed + pool.leave_s))

    def _start(self, now: float, pool: Pool, room: int) -> list[Size]:
        """Start waiting jobs, the shortest first. Where none fits, shrink elastic jobs to make room for the shortest."""
        peaks = _Peaks(pool)

        def fits(job: Job) -> bool:
            return peaks.lasts(room - job.least) >= min(job.left_s(now), self.pays * (job.save_s + job.restart_s))

        small = [job for job in pool.waiting if job.least <= room]
        started = start(sorted(small, key=lambda job: job.left_s(now)), room, fits)
        elastic = sum(job.nodes - job.least for job in pool.running.values())
        first = min(pool.waiting, key=lambda job: job.left_s(now))
        short = first.least - room - pool.leaving  # nodes that are being released will be free for it
        if started or not 0 < short <= elastic:
            return started
        return shrink(pool.running.values(), short, "a job waits")[0]

    def _extra(self, now: float, pool: Pool, room: int) -> list[Size]:
        """Give free nodes to the elastic jobs whose time they shorten most."""
        peaks, room = _Peaks(pool), room - math.ceil(self.reserve * pool.nodes)
        sizes: list[Size] = []
        jobs = [job for job in pool.running.values() if job.nodes < job.most and now >= job.begins]
        for job in sorted(jobs, key=lambda job: (-job.left_s(now) / job.nodes, job.name)):
            more, left, again = min(job.most - job.nodes, room), job.left_s(now), self.pays * (job.save_s + job.restart_s)
            if more <= 0 or now < job.begins + again or peaks.lasts(room - more) < again:
                continue
            if left / job.speed(job.nodes) - left / job.speed(job.nodes + more) > again:
                sizes.append(Size(job.name, job.nodes + more, None, "no job waits for these nodes"))
                room -= more
        return sizes


def _price(now: float, job: Job) -> float:
    """Node-seconds that are lost when the job writes a checkpoint and stops; a job that is still starting also loses its start."""
    starting = job.begins - now if now < job.begins else 0.0
    return job.least * (job.save_s + job.restart_s + starting)


class _Peaks:
    """For each bin of the forecast, the most nodes that services will need until then beyond those that they have."""

    def __init__(self, pool: Pool):
        wanted = [np.maximum(0, np.ceil(np.asarray(s.high) / s.per_node - 1e-9) - s.nodes) for s in pool.services if len(s.high)]
        bins = min((len(one) for one in wanted), default=0)
        self._most = np.maximum.accumulate(sum((one[:bins] for one in wanted), np.zeros(bins)))
        self._bin_s, self._into_s = (pool.services[0].bin_s, pool.services[0].into_s) if pool.services else (1.0, 0.0)

    def lasts(self, spare: int) -> float:
        """The seconds during which they need no more than `spare` nodes."""
        index = int(np.searchsorted(self._most, spare, side="right"))
        return math.inf if index == len(self._most) else max(0.0, index * self._bin_s - self._into_s)
