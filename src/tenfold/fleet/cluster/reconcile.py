"""One iteration of the control loop over live pools: what changed, which loans are due, what the policy decides, in this order.

The policy is called as in a simulation: periodically for every pool, and for a pool in which a run arrived, ended, failed or left
nodes.
"""

from collections.abc import Mapping
from typing import Protocol

from tenfold.fleet.pools import Policy, Pool, Size
from tenfold.fleet.site_pools import over_cap, over_due


class PoolWorld(Protocol):
    """Pools whose nodes are held by services and runs. `apply` records the size that a holder should have; `turn` begins to carry
    the sizes out on the cluster, without waiting."""

    @property
    def pools(self) -> Mapping[str, Pool]: ...

    def observe(self, now: float, periodic: bool) -> set[str]:
        """Read the cluster's state; returns the names of pools that changed so that the policy must be called. With `periodic`,
        demand, power and wishes are read too."""
        ...

    def apply(self, now: float, pool: Pool, size: Size) -> None: ...

    def turn(self, now: float) -> None: ...


def reconcile(now: float, world: PoolWorld, policy: Policy, periodic: bool) -> list[Size]:
    """Observe, decide and apply once; returns the decisions."""
    changed, chosen = world.observe(now, periodic), list[Size]()
    for name, pool in world.pools.items():
        if not periodic and name not in changed:
            continue
        pool.periodic = periodic
        for size in over_due(now, pool) if periodic else ():
            world.apply(now, pool, size)
            chosen.append(size)
        for size in policy.decide(now, pool):
            world.apply(now, pool, size)
            chosen.append(size)
        for size in over_cap(pool) if periodic else ():
            world.apply(now, pool, size)
            chosen.append(size)
    world.turn(now)
    return chosen
