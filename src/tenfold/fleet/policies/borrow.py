"""The policy `borrow`: quotas in one cohort, as Kueue has them. Who leaves a quota idle lends it, and reclaims it by preemption."""

from dataclasses import dataclass

from tenfold.fleet.policies.queueing import grown, now_needed, start, stop
from tenfold.fleet.pools import Pool, Size


@dataclass(frozen=True)
class Borrow:
    """Services scale by the rate of the moment, within what they own and what jobs leave idle. Jobs borrow what services leave.

    `reclaimWithinCohort: Any`: a service that needs its own back preempts the jobs that began last; they lose what they did since
    their last checkpoint. Jobs keep the size they asked for.
    """

    load: float = 0.9

    def decide(self, now: float, pool: Pool) -> list[Size]:
        sizes = now_needed(pool, self.load)
        more = grown(pool, sizes)
        if more > pool.room:
            owed = sum(max(0, min(size.nodes, s.own) - s.nodes) for size in sizes for s in pool.services if s.name == size.holder)
            short = min(more, owed) - pool.room - pool.leaving
            if short > 0:
                latest = stop(pool.running.values(), short, lambda job: -job.since * job.least, False, "its quota is reclaimed")
                return latest + sizes
        room = pool.room - more
        return sizes + (start(pool.waiting, room) if room > 0 and pool.waiting else [])
