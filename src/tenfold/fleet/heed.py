"""What operators wish of a cluster's pools: more nodes for a service until a time, and a site's power below a cap.

Both become facts of the pools that a policy is shown, a service's `least` and the nodes that are `allowed`; it does the rest.
"""

import math
from collections.abc import Mapping, Sequence

from tenfold.fleet.fleet_file import FleetFile
from tenfold.fleet.obey import Word
from tenfold.fleet.pools import Pool
from tenfold.fleet.setup import Setup
from tenfold.fleet.slots import Wish

Pools = Mapping[str, Pool]


def caps_of(wishes: Sequence[Wish]) -> dict[str, float]:
    """The lowest cap in watts of each site that a wish caps."""
    caps: dict[str, float] = {}
    for wish in wishes:
        if wish.kind == "cap" and wish.mw is not None:
            caps[wish.target] = min(caps.get(wish.target, math.inf), 1e6 * wish.mw)
    return caps


def heed(now: float, wishes: Sequence[Wish], pools: Pools, setup: Setup, owners: Mapping[str, str]) -> dict[int, Word]:
    """Show the pools what is wished, and say how far each wish is. Of two loans to a service the larger holds."""
    for pool in pools.values():
        for service in pool.services:
            service.least = setup.file.services[service.name].least
    return {wish.id: _word(now, wish, pools, setup, owners) for wish in wishes}


def _word(now: float, wish: Wish, pools: Pools, setup: Setup, owners: Mapping[str, str]) -> Word:
    if wish.kind == "drain":
        told = "drain it by the cluster's own command, as Slurm's `scontrol update NodeName=... State=DRAIN Reason=...`"
        return "cannot", f"which work is on which machine is the cluster's choice: {told}; the fleet then gives its work another"
    return _capped(wish, pools, setup) if wish.kind == "cap" else _lent(now, wish, pools, setup.file, owners)


def _lent(now: float, wish: Wish, pools: Pools, file: FleetFile, owners: Mapping[str, str]) -> Word:
    """The service gets as many nodes beyond its own as the wish names, and gives them back early enough to be free at its end."""
    found = [(pool, service) for pool in pools.values() for service in pool.services if service.name == wish.role]
    if not found:
        return "cannot", f"{wish.role} is no service of the fleet"
    (pool, service), table = found[0], file.services[found[0][1].name]
    nodes = [slot for slot, owner in owners.items() if owner != service.name and _names(wish.target, slot, owner, pool)]
    if not nodes:
        return "cannot", f"{service.name} works in {pool.name}, where {wish.target} names no node but its own"
    end = wish.until - table.leave_s - file.simulation.tick_s
    if end <= now:
        return "done", f"the nodes of {service.name} go back before the wish ends"
    service.least = max(service.least, service.own + len(nodes))
    if service.nodes > service.own:
        service.until = min(end, service.until or math.inf)
    return _state(service.nodes >= service.least), f"{service.name} has {service.nodes} of {service.own + len(nodes)} nodes"


def _names(target: str, slot: str, owner: str, pool: Pool) -> bool:
    return slot.rpartition("/")[0] == pool.name and target in (slot, owner, pool.name)


def _capped(wish: Wish, pools: Pools, setup: Setup) -> Word:
    here = [pool for pool in pools.values() if setup.pools[pool.name].site == wish.target]
    if not here:
        return "cannot", f"the fleet has no pool in {wish.target}, only in {' and '.join(setup.sites)}"
    busy = sum(pool.training + pool.serving + pool.leaving for pool in here)
    told = f"{busy} nodes work, and {sum(min(pool.nodes, max(0, pool.allowed)) for pool in here)} may"
    if any(pool.serving > pool.allowed for pool in here):
        return "cannot", f"{told}: no service is stopped for a cap"
    return _state(all(pool.training + pool.serving + pool.leaving <= pool.allowed for pool in here)), told


def _state(done: bool) -> str:
    return "done" if done else "on its way"
