"""`fleet.toml`: the sites, pools of nodes, services and jobs of a fleet. Paths in it are relative to the file."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from tenfold.spec.accelerator import accelerator
from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.files import readable


class Resources(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node has, or what a role needs of it."""

    accelerators: int = 0
    memory_gb: float = 0.0  # of each accelerator
    host_cores: int = 0
    ram_gib: float = 0.0
    storage_tb: float = 0.0
    network_gbps: float = 0.0


class SiteTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place with one connection to the grid. `power_cap_mw` is one figure, or one for each hour of the day."""

    region: str = "US"
    power_cap_mw: float | list[float] | None = None
    price_csv: str | None = None
    carbon_csv: str | None = None
    pue: float | None = None
    carbon_usd_per_t: float = 0.0


class PoolTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Equal nodes of one site."""

    site: str
    accelerator: str
    nodes: int
    accelerators_per_node: int = 8
    host_cores: int = 96
    ram_gib: float = 2048
    storage_tb: float = 30
    network_gbps: float = 3200

    @property
    def node(self) -> Resources:
        """What one node has."""
        memory = accelerator(self.accelerator).memory_gb
        return Resources(self.accelerators_per_node, memory, self.host_cores, self.ram_gib, self.storage_tb, self.network_gbps)


class ServiceTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Chat or ranking. A node answers `requests_per_s` within the bounds, as the server was measured; `demand_csv` has seconds and
    requests/s in its first two columns, times `demand_scale`. `own` nodes are its quota."""

    pool: str
    own: int
    requests_per_s: float
    demand_csv: str
    demand_scale: float = 1.0
    kind: str = "chat"
    model: str = ""
    least: int = 1
    start_s: float = 60.0
    first_token_s: float | None = None
    between_tokens_s: float | None = None
    p99_s: float | None = None
    needs: Resources = Resources()


class JobsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Training jobs of a trace with the columns timestamp, duration and num_gpus, as many as make `load` of the nodes that services
    do not own. A job of n GPUs in the trace has n x `nodes_per_gpu` nodes; from `elastic_from` nodes on it can grow to `most`
    times that size, at (size)^`scaling` times the speed. `estimate_error` is the spread of its owner's guess of its time."""

    trace_csv: str
    pools: list[str]
    load: float = 0.85
    nodes_per_gpu: float = 1.0
    elastic_from: int = 2
    most: float = 2.0
    scaling: float = 0.9
    estimate_error: float = 0.25
    state_gb_per_node: float = 100.0
    longest_interval_s: float = 1800.0
    needs: Resources = Resources()


class SimulationTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much is simulated: `days`, after which jobs may have `drain_days` to end; a periodic look is every `tick_s`."""

    days: float = 14.0
    drain_days: float = 0.0
    tick_s: float = 60.0
    seeds: int = 3
    history_days: float = 7.0


class FleetFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    sites: dict[str, SiteTable]
    pools: dict[str, PoolTable]
    services: dict[str, ServiceTable] = {}
    jobs: dict[str, JobsTable] = {}
    simulation: SimulationTable = SimulationTable()


def read_fleet(path: Path) -> FleetFile:
    """Read and check a file. Raises TenfoldError with one sentence that says what binds."""
    with readable(path):
        text = path.read_text()
    try:
        fields = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TenfoldError(f"{path} is not TOML: {error}.") from None
    return fleet_of(fields, str(path), path.parent)


def fleet_of(fields: dict[str, Any], where: str, folder: Path = Path()) -> FleetFile:
    """The fleet of a file's tables, its paths made absolute. Raises TenfoldError as `read_fleet` does."""
    try:
        fleet = msgspec.convert(fields, FleetFile)
    except msgspec.ValidationError as error:
        raise TenfoldError(f"{where}: {error}.") from None
    if not fleet.pools:
        raise TenfoldError(f"{where} has no [pools.NAME]: a fleet has one at least.")
    for name, pool in fleet.pools.items():
        if pool.site not in fleet.sites:
            raise TenfoldError(f"{where}: the pool {name} is in no site {pool.site!r}{nearest(pool.site, fleet.sites)}.")
        try:
            power = accelerator(pool.accelerator).tdp_w
        except TenfoldError as error:
            raise TenfoldError(f"{where}: the pool {name}: {error}") from None
        if power is None:
            raise TenfoldError(f"{where}: {pool.accelerator} has no published board power, so the power of {name} is unknown.")
        if pool.nodes < 1 or pool.accelerators_per_node < 1:
            raise TenfoldError(f"{where}: the pool {name} needs a node at least, with an accelerator at least.")
    for kind, roles in (("service", fleet.services), ("jobs", fleet.jobs)):
        for name, role in roles.items():
            for pool_name in [role.pool] if isinstance(role, ServiceTable) else role.pools:
                if pool_name not in fleet.pools:
                    raise TenfoldError(f"{where}: {kind} {name}: no pool {pool_name!r}{nearest(pool_name, fleet.pools)}.")
                _check_needs(where, name, role.needs, pool_name, fleet.pools[pool_name].node)
    for name, pool in fleet.pools.items():
        owned = sum(service.own for service in fleet.services.values() if service.pool == name)
        if owned > pool.nodes:
            more = f"{owned - pool.nodes:,} more are needed"
            raise TenfoldError(f"{where}: services own {owned:,} nodes of {name}, which has {pool.nodes:,}: {more}.")
    return _absolute(fleet, folder)


def _check_needs(where: str, role: str, needs: Resources, pool: str, node: Resources) -> None:
    for name in needs.__struct_fields__:
        need, has = getattr(needs, name), getattr(node, name)
        if need > has:
            what = name.replace("_", " ")
            raise TenfoldError(
                f"{where}: {role} needs {need:g} {what} of a node, and one of {pool} has {has:g}: add {need - has:g}."
            )


def _absolute(fleet: FleetFile, folder: Path) -> FleetFile:
    """The fleet with its files found from `folder`."""
    replace = msgspec.structs.replace

    def found(table: Any) -> Any:
        files = [key for key in table.__struct_fields__ if key.endswith("_csv") and getattr(table, key)]
        return replace(table, **{key: str(folder / getattr(table, key)) for key in files})

    tables = {key: {n: found(t) for n, t in getattr(fleet, key).items()} for key in ("sites", "services", "jobs")}
    return replace(fleet, **tables)
