"""The policy `borrow`: quotas in one cohort, as in Kueue. Idle quota is lent, and reclaimed by preemption."""

from dataclasses import dataclass

from tenfold.fleet.policies.queueing import grown, now_needed, start, stop
from tenfold.fleet.pools import Pool, Size


@dataclass(frozen=True)
class Borrow:
    """Services scale with the present rate, within the nodes that they own and those that jobs leave idle. Jobs use the other
    nodes.

    As with Kueue's `reclaimWithinCohort: Any`, a service that needs its own nodes back preempts the jobs that started last; these
    lose their work since their last checkpoint. Jobs keep the size they asked for. `load` is the share of a node's throughput that
    a service uses.
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
