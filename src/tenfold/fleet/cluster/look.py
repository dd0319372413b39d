"""One look of the controller at live pools: what changed, what is due, what the policy chooses, in this order.

The controller asks the policy where a simulation does: in every pool at even times, and in a pool where a run came, ended, was hit
by a failure, or left nodes.
"""

from collections.abc import Mapping
from typing import Protocol

from tenfold.fleet.pools import Policy, Pool, Size
from tenfold.fleet.site_pools import over_cap, over_due


class PoolWorld(Protocol):
    """Pools whose nodes are held by services and runs. `apply` says what a holder should have; `turn` begins to bring that about,
    and does not wait."""

    @property
    def pools(self) -> Mapping[str, Pool]: ...

    def observe(self, now: float, periodic: bool) -> set[str]:
        """Look at the cluster; returns the pools in which something changed that a policy is asked about. At a `periodic` look
        demand and power are read too."""
        ...

    def apply(self, now: float, pool: Pool, size: Size) -> None: ...

    def turn(self, now: float) -> None: ...


def look(now: float, world: PoolWorld, policy: Policy, periodic: bool) -> list[Size]:
    """Look, decide and apply once; returns the sizes that were chosen."""
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
