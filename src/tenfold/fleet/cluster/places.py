"""The slots of a live fleet's pools: places for one node's work each, in the ledger under the names POOL/NUMBER.

Which machine a place is says the cluster."""

from collections.abc import Mapping, Sequence

from tenfold.fleet.fleet_file import FleetFile
from tenfold.fleet.ledger import Lease, Ledger, Turn

TRAIN = "train"  # the role of a run's places, and of those that nobody has
DOWN = "down"  # of as many places as nodes are not up


def owners(file: FleetFile) -> dict[str, str]:
    """The places of a fleet file with their owners: each service's own, and training's."""
    found: dict[str, str] = {}
    for name, pool in file.pools.items():
        own = [service for service, table in file.services.items() if table.pool == name for _ in range(table.own)]
        found |= {f"{name}/{i + 1}": own[i] if i < len(own) else TRAIN for i in range(pool.nodes)}
    return found


class Places:
    """The leases that have not ended. A service's places have its name as their role, and the name of its job there as their work;
    a run's have its name as their work."""

    def __init__(self, ledger: Ledger):
        self._ledger = ledger
        self._leases: Mapping[str, Lease] = {}
        self._read()

    def __getitem__(self, place: str) -> Lease:
        return self._leases[place]

    def of(self, pool: str, role: str) -> list[str]:
        """A role's places, in the order in which it got them; of training those that nobody has."""
        return [x.slot for x in self._in(pool) if x.role == role and (role != TRAIN or x.work is None)]

    def of_run(self, pool: str, run: str) -> list[str]:
        return [x.slot for x in self._in(pool) if x.role == TRAIN and x.work == run]

    def give(self, now: float, turns: Sequence[Turn]) -> None:
        """All or none."""
        if turns:
            self._ledger.turn_all(turns, now)
            self._read()

    def _in(self, pool: str) -> list[Lease]:
        return [lease for lease in self._leases.values() if lease.slot.rpartition("/")[0] == pool]

    def _read(self) -> None:
        self._leases = {lease.slot: lease for lease in self._ledger.leases(current=True)}
