"""`fleet.toml`: the sites, pools of nodes, services and jobs of a fleet. Paths in it are relative to the file."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import msgspec
from msgspec import Meta

from tenfold.spec.accelerator import accelerator
from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.files import readable
from tenfold.spec.ranges import Count, CountOrNone, Nodes, NotNegative, Positive, Seconds, Share, Text, convert, hints_of

OfEachHour = Annotated[
    list[Positive], Meta(min_length=24, max_length=24, extra={"words": "24 of them, one for each hour of the day"})
]
OneOrMore = Annotated[float, Meta(ge=1)]
Command = Annotated[list[str], Meta(min_length=1)]


class Resources(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node has, or what a role needs of it."""

    accelerators: CountOrNone = 0
    memory_gb: NotNegative = 0.0  # of each accelerator
    host_cores: CountOrNone = 0
    ram_gib: NotNegative = 0.0
    storage_tb: NotNegative = 0.0
    network_gbps: NotNegative = 0.0


class SiteTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place with one connection to the grid. `power_cap_mw` is one figure, or one for each hour of the day."""

    region: str = "US"
    power_cap_mw: Positive | OfEachHour | None = None
    price_csv: str | None = None
    carbon_csv: str | None = None
    pue: OneOrMore | None = None
    carbon_usd_per_t: NotNegative = 0.0


class PoolTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Equal nodes of one site. For a live fleet: they are those of Slurm's `partition`, or Ray's with the custom `resource`."""

    site: str
    accelerator: str
    nodes: Nodes
    accelerators_per_node: Count = 8
    host_cores: CountOrNone = 96
    ram_gib: NotNegative = 2048
    storage_tb: NotNegative = 30
    network_gbps: NotNegative = 3200
    partition: Text | None = None
    resource: Text | None = None

    @property
    def node(self) -> Resources:
        """What one node has."""
        memory = accelerator(self.accelerator).memory_gb
        return Resources(self.accelerators_per_node, memory, self.host_cores, self.ram_gib, self.storage_tb, self.network_gbps)


class ServiceTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Chat or ranking. A node answers `requests_per_s` within the bounds, as the server was measured; `demand_csv` has seconds and
    requests/s in its first two columns, times `demand_scale`. `own` nodes are its quota. `command` is what each of its
    nodes runs in a live fleet, where it has `leave_s` to finish its answers."""

    pool: str
    own: CountOrNone
    requests_per_s: Positive
    demand_csv: str
    demand_scale: Positive = 1.0
    least: CountOrNone = 1
    start_s: Seconds = 60.0
    leave_s: Count = 60
    needs: Resources = Resources()
    command: Command | None = None


class RunTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A training run of a live fleet: `command` on `least` to `most` nodes of a pool, under torchrun with `processes_per_node`, by
    default one for each accelerator. Its owner guesses that it needs `hours` on `least` nodes, `save_s` to save and leave and
    `restart_s` to start; it saves every `interval_s`."""

    pool: str
    command: Command
    hours: Positive
    least: Nodes = 1
    most: Nodes | None = None
    processes_per_node: Count | None = None
    save_s: Count = 60
    restart_s: Seconds = 120.0
    interval_s: Positive = 1800.0
    scaling: Share = 0.9
    needs: Resources = Resources()


class JobsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Training jobs of a trace with the columns timestamp, duration and num_gpus, as many as make `load` of the nodes that services
    do not own. A job of n GPUs in the trace has n x `nodes_per_gpu` nodes; from `elastic_from` nodes on it can grow to `most`
    times that size, at (size)^`scaling` times the speed. `estimate_error` is the spread of its owner's guess of its time."""

    trace_csv: str
    pools: Annotated[list[str], Meta(min_length=1)]
    load: Positive = 0.85
    nodes_per_gpu: Positive = 1.0
    elastic_from: Count = 2
    most: OneOrMore = 2.0
    scaling: Share = 0.9
    estimate_error: NotNegative = 0.25
    state_gb_per_node: Positive = 100.0
    longest_interval_s: Positive = 1800.0
    needs: Resources = Resources()


class SimulationTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much is simulated: `days`, after which jobs may have `drain_days` to end; a periodic look is every `tick_s`."""

    days: Positive = 14.0
    drain_days: NotNegative = 0.0
    tick_s: OneOrMore = 60.0
    seeds: Count = 3
    history_days: NotNegative = 7.0


class FleetFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    sites: dict[str, SiteTable]
    pools: dict[str, PoolTable]
    services: dict[str, ServiceTable] = {}
    jobs: dict[str, JobsTable] = {}
    runs: dict[str, RunTable] = {}
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
    fleet = _converted(fields, where)
    if not fleet.pools:
        raise TenfoldError(f"{where} has no [pools.NAME]: a fleet has one at least.")
    for name, pool in fleet.pools.items():
        _check_pool(fleet, where, name, pool)
    for kind, roles in (("service", fleet.services), ("jobs", fleet.jobs), ("run", fleet.runs)):
        for name, role in roles.items():
            for pool_name in role.pools if isinstance(role, JobsTable) else [role.pool]:
                if pool_name not in fleet.pools:
                    raise TenfoldError(f"{where}: {kind} {name}: no pool {pool_name!r}{nearest(pool_name, fleet.pools)}.")
                _check_needs(where, name, role.needs, pool_name, fleet.pools[pool_name].node)
    left = {name: pool.nodes - sum(s.own for s in fleet.services.values() if s.pool == name) for name, pool in fleet.pools.items()}
    for name, nodes in left.items():
        if nodes < 0:
            has = fleet.pools[name].nodes
            raise TenfoldError(
                f"{where}: services own {has - nodes:,} nodes of {name}, which has {has:,}: {-nodes:,} more are needed."
            )
    for name, jobs in fleet.jobs.items():
        if not any(left[pool] for pool in jobs.pools):
            raise TenfoldError(
                f"{where}: services own every node of {' and '.join(jobs.pools)}, and none is left for the jobs {name}: add some."
            )
    for name, run in fleet.runs.items():
        _check_run(fleet, where, name, run)
    return _absolute(fleet, folder)


def _check_run(fleet: FleetFile, where: str, name: str, run: RunTable) -> None:
    has, least = fleet.pools[run.pool].nodes, sum(one.least for one in fleet.services.values() if one.pool == run.pool)
    if name in fleet.services:
        raise TenfoldError(f"{where}: {name} is the name of a run and of a service: name one otherwise.")
    if run.most is not None and run.most < run.least:
        raise TenfoldError(f"{where}: the run {name} works on {run.least:,} nodes at least and cannot have {run.most:,} at most.")
    if run.least + least > has:
        beside = f", beside {least:,} of services," if least else ""
        raise TenfoldError(f"{where}: the run {name} needs {run.least:,} nodes{beside} of {run.pool}, which has {has:,}: add some.")


def _converted(fields: dict[str, Any], where: str) -> FleetFile:
    """The tables, each by itself first, so that a sentence names it."""
    for key, kind in hints_of(FleetFile).items():
        if get_origin(kind) is dict and isinstance(tables := fields.get(key), dict):
            for name, table in tables.items():
                convert(table, get_args(kind)[1], f"{where}: {key}.{name}")
    return convert(fields, FleetFile, where)


def _check_pool(fleet: FleetFile, where: str, name: str, pool: PoolTable) -> None:
    if pool.site not in fleet.sites:
        raise TenfoldError(f"{where}: the pool {name} is in no site {pool.site!r}{nearest(pool.site, fleet.sites)}.")
    try:
        power = accelerator(pool.accelerator).tdp_w
    except TenfoldError as error:
        raise TenfoldError(f"{where}: the pool {name}: {error}") from None
    if power is None:
        raise TenfoldError(f"{where}: {pool.accelerator} has no published board power, so the power of {name} is unknown.")


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
