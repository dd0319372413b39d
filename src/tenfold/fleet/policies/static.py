"""The policy `static`: services keep the nodes that they own, and jobs start in order on the others. Nothing is lent."""

from dataclasses import dataclass

from tenfold.fleet.policies.queueing import start
from tenfold.fleet.pools import Pool, Size


@dataclass(frozen=True)
class Static:
    """Jobs get their least size, the one that they asked for."""

    def decide(self, now: float, pool: Pool) -> list[Size]:
        sizes = [Size(s.name, s.own, None, "its own") for s in pool.services if s.nodes != s.own]
        room = min(pool.room, pool.nodes - pool.own - pool.training - pool.leaving)
        if room > 0 and pool.waiting:
            sizes += start(pool.waiting, room)
        return sizes
