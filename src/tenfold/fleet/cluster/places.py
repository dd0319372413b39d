"""The slots of a live fleet's pools: places for the work of one node each, in the ledger under the names POOL/NUMBER.

The cluster decides which machine a place is."""

from collections.abc import Mapping, Sequence

from tenfold.fleet.fleet_file import FleetFile
from tenfold.fleet.ledger import Lease, Ledger, Turn

TRAIN = "train"  # the role of places that a run has, and of free ones
DOWN = "down"  # the role of places without a node: as many as nodes are not up


def owners(file: FleetFile) -> dict[str, str]:
    """The places of a fleet file with their owners: each service owns as many as its quota, training the others."""
    found: dict[str, str] = {}
    for name, pool in file.pools.items():
        own = [service for service, table in file.services.items() if table.pool == name for _ in range(table.own)]
        found |= {f"{name}/{i + 1}": own[i] if i < len(own) else TRAIN for i in range(pool.nodes)}
    return found


class Places:
    """The current leases of all places. A service's place has the service as its role and the name of its job there as its work; a
    run's place has the role `train` and the run's name as its work."""

    def __init__(self, ledger: Ledger):
        self._ledger = ledger
        self._leases: Mapping[str, Lease] = {}
        self._read()

    def __getitem__(self, place: str) -> Lease:
        return self._leases[place]

    def of(self, pool: str, role: str) -> list[str]:
        """The places of a service, or those that are down, in the order in which they were given; for `train` the free ones."""
        return [x.slot for x in self._in(pool) if x.role == role and (role != TRAIN or x.work is None)]

    def of_run(self, pool: str, run: str) -> list[str]:
        return [x.slot for x in self._in(pool) if x.role == TRAIN and x.work == run]

    def give(self, now: float, turns: Sequence[Turn]) -> None:
        """Begin the next leases of these places: all of them or none."""
        if turns:
            self._ledger.turn_all(turns, now)
            self._read()

    def _in(self, pool: str) -> list[Lease]:
        return [lease for lease in self._leases.values() if lease.slot.rpartition("/")[0] == pool]

    def _read(self) -> None:
        self._leases = {lease.slot: lease for lease in self._ledger.leases(current=True)}
