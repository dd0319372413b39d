"""Operators' wishes for a cluster's pools: more nodes for a service until a time, or a site's power below a cap.

Wishes change what the policy sees of a pool: a service's `least`, and the number of nodes that are `allowed` to be busy. The policy
then moves the nodes.
"""

import math
from collections.abc import Mapping, Sequence

from tenfold.fleet.fleet_file import FleetFile
from tenfold.fleet.operate.on_slots import Word
from tenfold.fleet.pools import Pool
from tenfold.fleet.setup import Setup
from tenfold.fleet.slots.slots import Wish

Pools = Mapping[str, Pool]


def caps_of(wishes: Sequence[Wish]) -> dict[str, float]:
    """The lowest cap of each site that has one, in watts."""
    caps: dict[str, float] = {}
    for wish in wishes:
        if wish.kind == "cap" and wish.mw is not None:
            caps[wish.target] = min(caps.get(wish.target, math.inf), 1e6 * wish.mw)
    return caps


def apply_to_pools(now: float, wishes: Sequence[Wish], pools: Pools, setup: Setup, owners: Mapping[str, str]) -> dict[int, Word]:
    """Apply the wishes to the pools, and return the state of each. Of two loans to a service the larger one counts."""
    for pool in pools.values():
        for service in pool.services:
            service.least = setup.file.services[service.name].least
    return {wish.id: _word(now, wish, pools, setup, owners) for wish in wishes}


def _word(now: float, wish: Wish, pools: Pools, setup: Setup, owners: Mapping[str, str]) -> Word:
    if wish.kind == "drain":
        told = "use the cluster's own command, such as Slurm's `scontrol update NodeName=... State=DRAIN Reason=...`"
        return "cannot", f"the cluster decides which work runs on which node: {told}; the fleet then moves the work"
    return _capped(wish, pools, setup) if wish.kind == "cap" else _lent(now, wish, pools, setup.file, owners)


def _lent(now: float, wish: Wish, pools: Pools, file: FleetFile, owners: Mapping[str, str]) -> Word:
    """Raise the service's `least` by the nodes that the wish names, until they must be given back to be free at the wish's end."""
    found = [(pool, service) for pool in pools.values() for service in pool.services if service.name == wish.role]
    if not found:
        return "cannot", f"the fleet has no service {wish.role}"
    (pool, service), table = found[0], file.services[found[0][1].name]
    nodes = [slot for slot, owner in owners.items() if owner != service.name and _names(wish.target, slot, owner, pool)]
    if not nodes:
        return "cannot", f"{service.name} runs in {pool.name}, where {wish.target} names no node that it does not own"
    end = wish.until - table.leave_s - file.simulation.tick_s
    if end <= now:
        return "done", f"{service.name} gives the nodes back before the wish ends"
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
    told = f"{busy} nodes are busy, and {sum(min(pool.nodes, max(0, pool.allowed)) for pool in here)} are allowed"
    if any(pool.serving > pool.allowed for pool in here):
        return "cannot", f"{told}: no service is stopped for a cap"
    return _state(all(pool.training + pool.serving + pool.leaving <= pool.allowed for pool in here)), told


def _state(done: bool) -> str:
    return "done" if done else "on its way"
