"""`fleet.toml`: the sites, pools of nodes, services and jobs of a fleet. Paths in it are relative to the file."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import msgspec
from msgspec import Meta

from tenfold.plan.sites.site import site
from tenfold.spec.accelerator import accelerator
from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.files import readable
from tenfold.spec.ranges import Count, CountOrNone, Nodes, NotNegative, Seconds, Share, Text, convert, hints_of, require_keys

Megawatts = Annotated[float, Meta(gt=0, le=1e6)]
Multiple = Annotated[float, Meta(ge=1, le=1024)]
Scale = Annotated[float, Meta(ge=1e-6, le=1e9)]
Days = Annotated[float, Meta(ge=0, le=3660)]
OfEachHour = Annotated[
    list[Megawatts], Meta(min_length=24, max_length=24, extra={"words": "24 of them, one for each hour of the day"})
]
Command = Annotated[list[str], Meta(min_length=1)]


class Resources(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node has, or what a service, job or run needs of each of its nodes."""

    accelerators: CountOrNone = 0
    memory_gb: NotNegative = 0.0  # of each accelerator
    host_cores: CountOrNone = 0
    ram_gib: NotNegative = 0.0
    storage_tb: NotNegative = 0.0
    network_gbps: NotNegative = 0.0


class SiteTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place with one grid connection. `power_cap_mw` is one number, or one for each hour of the day. The region's published
    figures stand in for prices, carbon intensity and PUE that are not given."""

    region: str = "US"
    power_cap_mw: Megawatts | OfEachHour | None = None
    price_csv: str | None = None
    carbon_csv: str | None = None
    pue: Annotated[float, Meta(ge=1, le=10)] | None = None
    carbon_usd_per_t: Annotated[float, Meta(ge=0, le=1e6)] = 0.0


class PoolTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Equal nodes of one site. In a live fleet they are the nodes of Slurm's `partition`, or Ray's nodes with the custom
    `resource`."""

    site: str
    accelerator: str
    nodes: Nodes
    accelerators_per_node: Annotated[int, Meta(ge=1, le=1024)] = 8
    host_cores: CountOrNone = 96
    ram_gib: NotNegative = 2048
    storage_tb: NotNegative = 30
    network_gbps: NotNegative = 3200
    partition: Text | None = None
    resource: Text | None = None

    @property
    def node(self) -> Resources:
        """The resources of one node."""
        memory = accelerator(self.accelerator).memory_gb
        return Resources(self.accelerators_per_node, memory, self.host_cores, self.ram_gib, self.storage_tb, self.network_gbps)


class ServiceTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Chat or ranking. A node answers `requests_per_s` within the latency bounds, as measured. `demand_csv` has seconds and
    requests/s in its first two columns; `demand_scale` multiplies the latter. `own` nodes are its quota, and it never has fewer
    than `least`. A node is ready `start_s` seconds after its start. In a live fleet each node runs `command`, and has `leave_s`
    seconds to finish its answers when it is told to leave."""

    pool: str
    own: CountOrNone
    requests_per_s: Scale
    demand_csv: str
    demand_scale: Scale = 1.0
    least: CountOrNone = 1
    start_s: Annotated[float, Meta(ge=0, le=43_200)] = 60.0  # at most twelve hours, the longest horizon of the forecasts
    leave_s: Count = 60
    needs: Resources = Resources()
    command: Command | None = None


class RunTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A training run of a live fleet: `command` under torchrun on `least` to `most` nodes of a pool (`least` alone without `most`),
    with `processes_per_node`, by default one for each accelerator.

    Its owner's estimates: `hours` of work on `least` nodes, `save_s` seconds to save and leave, `restart_s` to start, and a
    checkpoint every `interval_s`. On n nodes it is (n / `least`)^`scaling` times as fast."""

    pool: str
    command: Command
    hours: Annotated[float, Meta(gt=0, le=87_600)]
    least: Nodes = 1
    most: Nodes | None = None
    processes_per_node: Count | None = None
    save_s: Count = 60
    restart_s: Seconds = 120.0
    interval_s: Annotated[float, Meta(gt=0, le=1e9)] = 1800.0
    scaling: Share = 0.9
    needs: Resources = Resources()


class JobsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Training jobs of a simulation, drawn from a trace with the columns timestamp, duration and num_gpus, so that they fill the
    share `load` of the nodes that services do not own.

    A job of n GPUs in the trace has n x `nodes_per_gpu` nodes. From `elastic_from` nodes on it can grow to `most` times its size;
    at k times its size it is k^`scaling` times as fast. `estimate_error` is the standard deviation of the logarithm of its owner's
    estimate of its duration. A checkpoint has `state_gb_per_node`, and is written at least every `longest_interval_s`."""

    trace_csv: str
    pools: Annotated[list[str], Meta(min_length=1)]
    load: Annotated[float, Meta(gt=0, le=100)] = 0.85
    nodes_per_gpu: Scale = 1.0
    elastic_from: Count = 2
    most: Multiple = 2.0
    scaling: Share = 0.9
    estimate_error: Annotated[float, Meta(ge=0, le=5)] = 0.25
    state_gb_per_node: Annotated[float, Meta(gt=0, le=1e6)] = 100.0
    longest_interval_s: Annotated[float, Meta(gt=0, le=1e9)] = 1800.0
    needs: Resources = Resources()


class SimulationTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much is simulated: `days`, then up to `drain_days` in which jobs may finish; node-hours, energy and requests are counted
    in `days` only. The policy is called every `tick_s` seconds. Figures are means over `seeds` simulations. A live fleet uses
    `tick_s` alone."""

    days: Annotated[float, Meta(ge=0.1, le=3660)] = 14.0
    drain_days: Days = 0.0
    tick_s: Annotated[float, Meta(ge=1, le=3600)] = 60.0
    seeds: Annotated[int, Meta(ge=1, le=10_000)] = 3
    history_days: Annotated[float, Meta(ge=2.5, le=3660)] = 7.0  # demand before the first day, for the first forecast


class FleetFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file: tables by name, and the table [simulation]."""

    sites: dict[str, SiteTable]
    pools: dict[str, PoolTable]
    services: dict[str, ServiceTable] = {}
    jobs: dict[str, JobsTable] = {}
    runs: dict[str, RunTable] = {}
    simulation: SimulationTable = SimulationTable()


def read_fleet(path: Path) -> FleetFile:
    """Read and check a file. Raises TenfoldError with one sentence that says what is wrong in it."""
    with readable(path):
        text = path.read_text()
    try:
        fields = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TenfoldError(f"{path} is not TOML: {error}.") from None
    return fleet_of(fields, str(path), path.parent)


def fleet_of(fields: dict[str, Any], where: str, folder: Path = Path()) -> FleetFile:
    """The fleet in a file's tables; its paths are resolved against `folder`. Raises TenfoldError as `read_fleet` does."""
    fleet = _converted(fields, where)
    if not fleet.pools:
        raise TenfoldError(f"{where} has no [pools.NAME]: add at least one pool.")
    for name, table in fleet.sites.items():
        _check_site(where, name, table)
    for name, pool in fleet.pools.items():
        _check_pool(fleet, where, name, pool)
    for kind, roles in (("service", fleet.services), ("jobs", fleet.jobs), ("run", fleet.runs)):
        for name, role in roles.items():
            for pool_name in role.pools if isinstance(role, JobsTable) else [role.pool]:
                if pool_name not in fleet.pools:
                    raise TenfoldError(f"{where}: {kind} {name}: no pool {pool_name!r}{nearest(pool_name, fleet.pools)}.")
                _check_needs(where, name, role.needs, pool_name, fleet.pools[pool_name].node)
    left = {name: _left(fleet, where, name) for name in fleet.pools}
    for name, jobs in fleet.jobs.items():
        _check_jobs(fleet, where, name, jobs, left)
    for name, run in fleet.runs.items():
        _check_run(fleet, where, name, run)
    return _absolute(fleet, folder)


def _check_site(where: str, name: str, table: SiteTable) -> None:
    try:
        site(table.region, table.pue)
    except TenfoldError as error:
        raise TenfoldError(f"{where}: the site {name}: {error}") from None


def _left(fleet: FleetFile, where: str, pool: str) -> int:
    """The nodes of a pool that services leave to jobs: those that they neither own nor need at the least."""
    has, held = fleet.pools[pool].nodes, [one for one in fleet.services.values() if one.pool == pool]
    for what, nodes in (("own", sum(one.own for one in held)), ("hold at least", sum(one.least for one in held))):
        if nodes > has:
            raise TenfoldError(
                f"{where}: services {what} {nodes:,} nodes of {pool}, which has {has:,}: {nodes - has:,} more are needed."
            )
    return has - sum(max(one.own, one.least) for one in held)


def _check_jobs(fleet: FleetFile, where: str, name: str, jobs: JobsTable, left: dict[str, int]) -> None:
    if again := next((pool for pool in jobs.pools if jobs.pools.count(pool) > 1), None):
        raise TenfoldError(f"{where}: jobs {name}: the pool {again!r} is named {jobs.pools.count(again)} times: name it once.")
    if clash := next((one for one in fleet.services if re.fullmatch(rf"{re.escape(name)}-\d+", one)), None):
        raise TenfoldError(f"{where}: the service {clash} has the name of a job of {name}, such as {name}-0: rename it.")
    if not any(left[pool] > 0 for pool in jobs.pools):
        raise TenfoldError(
            f"{where}: services have every node of {' and '.join(jobs.pools)}, and none is left for the jobs {name}: add nodes."
        )


def _check_run(fleet: FleetFile, where: str, name: str, run: RunTable) -> None:
    has, least = fleet.pools[run.pool].nodes, sum(one.least for one in fleet.services.values() if one.pool == run.pool)
    if name in fleet.services:
        raise TenfoldError(f"{where}: {name} is the name of a run and of a service: rename one of them.")
    if run.most is not None and run.most < run.least:
        raise TenfoldError(
            f"{where}: the run {name} has least = {run.least:,} nodes and most = {run.most:,}: most must not be smaller."
        )
    if run.least + least > has:
        beside = f", beside {least:,} of services," if least else ""
        raise TenfoldError(
            f"{where}: the run {name} needs {run.least:,} nodes{beside} of {run.pool}, which has {has:,}: add nodes."
        )


def _converted(fields: dict[str, Any], where: str) -> FleetFile:
    """Convert each table by itself first, so that an error names the table and the key."""
    require_keys(fields, hints_of(FleetFile), where)
    for key, kind in hints_of(FleetFile).items():
        if get_origin(kind) is dict and isinstance(tables := fields.get(key), dict):
            for name, table in tables.items():
                _check_keys(table, get_args(kind)[1], f"{where}: {key}.{name}")
                convert(table, get_args(kind)[1], f"{where}: {key}.{name}")
    _check_keys(fields.get("simulation", {}), SimulationTable, f"{where}: simulation")
    if missing := [key for key in ("sites", "pools") if key not in fields]:
        raise TenfoldError(f"{where} has no [{missing[0]}.NAME]: add at least one.")
    return convert(fields, FleetFile, where)


def _check_keys(table: Any, kind: Any, where: str) -> None:
    if not isinstance(table, dict):
        return  # `convert` raises the error
    require_keys(table, kind.__struct_fields__, where)
    if missing := [field.name for field in msgspec.structs.fields(kind) if field.required and field.name not in table]:
        raise TenfoldError(f"{where} needs {' and '.join(missing)}.")
    if "needs" in table:
        _check_keys(table["needs"], Resources, f"{where}.needs")


def _check_pool(fleet: FleetFile, where: str, name: str, pool: PoolTable) -> None:
    if pool.site not in fleet.sites:
        raise TenfoldError(f"{where}: the pool {name}: there is no site {pool.site!r}{nearest(pool.site, fleet.sites)}.")
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
                f"{where}: {role} needs {need:g} {what} of a node, and one of {pool} has {has:g}: {need - has:g} more are needed."
            )


def _absolute(fleet: FleetFile, folder: Path) -> FleetFile:
    """The fleet with the paths of its CSV files resolved against `folder`."""
    replace = msgspec.structs.replace

    def found(table: Any) -> Any:
        files = [key for key in table.__struct_fields__ if key.endswith("_csv") and getattr(table, key)]
        return replace(table, **{key: str(folder / getattr(table, key)) for key in files})

    tables = {key: {n: found(t) for n, t in getattr(fleet, key).items()} for key in ("sites", "services", "jobs")}
    return replace(fleet, **tables)
