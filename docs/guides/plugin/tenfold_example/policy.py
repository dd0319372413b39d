"""A fleet policy: jobs start in order, and a share of the pool stays free to replace failed nodes."""

import math
from dataclasses import dataclass

from tenfold.fleet.policies.queueing import start
from tenfold.fleet.pools import Pool, Size


@dataclass(frozen=True)
class Careful:
    """Services keep the nodes that they own. Jobs get the others, except for a share `free` of all nodes."""

    free: float = 0.05

    def decide(self, now: float, pool: Pool) -> list[Size]:
        sizes = [Size(s.name, s.own, None, "its own") for s in pool.services if s.nodes != s.own]
        kept = pool.own + math.ceil(self.free * pool.nodes)
        room = min(pool.room, pool.nodes - kept - pool.training - pool.leaving)
        return sizes + (start(pool.waiting, room) if room > 0 and pool.waiting else [])
