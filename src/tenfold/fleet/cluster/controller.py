"""The controller of a fleet file on a cluster: it observes the pools, calls the policy, and carries out its decisions."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.fleet.clock import Clock
from tenfold.fleet.cluster.launched import LaunchedWorld
from tenfold.fleet.cluster.places import DOWN, TRAIN, owners
from tenfold.fleet.cluster.reconcile import reconcile
from tenfold.fleet.fleet_file import FleetFile, ServiceTable, read_fleet
from tenfold.fleet.forecast import AHEAD, DAY, DemandModel, fit_demand, require_scikit_learn
from tenfold.fleet.ledger import Ledger
from tenfold.fleet.operate.operate import CONTROLLER
from tenfold.fleet.pools import Policy, Service, Size
from tenfold.fleet.seen import Recorded
from tenfold.fleet.setup import Setup, pools_of, recovery, sites_of
from tenfold.fleet.traces import BIN_S, read_demand
from tenfold.launch.job import Job, Launcher, open_launcher
from tenfold.launch.job_files import file_name
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import make_folder, one_at_a_time

LOOK_S = 2.0  # seconds between two iterations of the control loop
# The launchers of clusters: the field of a pool that selects its nodes, and further options of the launcher.
CLUSTERS: dict[str, tuple[str, dict[str, Any]]] = {"slurm": ("partition", {"requeues": 0}), "ray": ("resource", {})}


def control(path: Path, on: str, home: Path, policy: Policy, say: Callable[[float, Size], None]) -> None:
    """Run the fleet of the file at `path` on a cluster until all its runs have finished; with services, until it is stopped.

    `say` is called with the time and each decision. Jobs on the cluster continue without the controller, and the same call later
    continues with them.

    Raises TenfoldError for a file that cannot run there, a cluster that does not answer, and work that fails again and again.
    """
    file = read_fleet(path)
    check(file, str(path), on)
    folder = make_folder((home / "fleet").absolute())
    with one_at_a_time(folder / CONTROLLER, f"running the fleet of {folder}"):
        clock = Clock(folder / "clock.json")
        ledger = Ledger(folder / "ledger.db", owners(file), clock())
        if other := sorted(ledger.owners.keys() - owners(file).keys()):
            raise TenfoldError(
                f"The ledger in {folder} has the slot {other[0]}, which {path} does not have: choose another --home."
            )
        setup = Setup(file, pools_of(file), sites_of(file), {}, {}, recovery())
        world = LaunchedWorld(folder, ledger, setup, launchers(file, on, folder), DemandFiles(file.services))
        try:
            due, recorded = -math.inf, Recorded(policy, folder)
            while file.services or file.runs.keys() - ledger.finished():
                now = clock()
                for name in file.runs:
                    world.arrive(now, name)
                periodic = now >= due
                due = now + file.simulation.tick_s if periodic else due
                for size in reconcile(now, world, recorded, periodic):
                    say(now, size)
                time.sleep(LOOK_S)
        finally:
            world.close()
            ledger.close()


def check(file: FleetFile, where: str, on: str) -> None:
    """Raise TenfoldError where a fleet file cannot run on a cluster."""
    key, _ = CLUSTERS[on]
    if not file.services and not file.runs:
        raise TenfoldError(f"{where} has neither [services.NAME] nor [runs.NAME], and so nothing to run on {on}.")
    for name, service in file.services.items():
        if name in (TRAIN, DOWN):
            raise TenfoldError(
                f"{where}: a service cannot be named {name}, a name that the ledger uses for other nodes: rename it."
            )
        if service.command is None:
            raise TenfoldError(f"{where}: the service {name} has no command: add the one that each of its nodes runs.")
    files: dict[str, str] = {}
    for name in [*file.services, *file.runs]:
        if (other := files.setdefault(file_name(Job(name, ("true",))), name)) != name:
            raise TenfoldError(
                f"{where}: {other} and {name} would be one name on {on}, which keeps letters, digits and hyphens only: rename one."
            )
    had: dict[str | None, str] = {}
    for name, pool in file.pools.items():
        nodes = getattr(pool, key)
        if len(file.pools) > 1 and nodes is None:
            raise TenfoldError(f"{where}: the pool {name} has no {key}, by which {on} would know its nodes: add one to each pool.")
        if nodes in had:
            raise TenfoldError(f"{where}: the pools {had[nodes]} and {name} are both of the {key} {nodes}: give each its own.")
        had[nodes] = name


def launchers(file: FleetFile, on: str, folder: Path) -> dict[str, Launcher]:
    """A launcher for each pool, whose jobs run on the pool's nodes."""
    key, options = CLUSTERS[on]
    return {
        name: open_launcher(on, folder=folder, **{key: getattr(pool, key)}, **options) for name, pool in file.pools.items()
    }  # fmt: skip


class DemandFiles:
    """The demand of services, from their CSV files: the last row is the present, and whoever measures the demand appends rows.

    There is a forecast from two and a half days of demand on; with less, a service has only its present rate. A file that becomes
    faulty, such as one that is half written, changes nothing until it can be read again.
    """

    def __init__(self, tables: Mapping[str, ServiceTable]):
        require_scikit_learn()  # now, and not when there are two and a half days of demand
        self._tables = tables
        self._read: dict[str, float] = {}  # by service: the modification time of its file when it was read
        self._faulty: set[str] = set()  # services whose file could not be read at the last attempt
        self._models: dict[str, tuple[int, DemandModel]] = {}

    def __call__(self, service: Service, now: float) -> None:
        """Set the service's demand. Raises TenfoldError where its file is faulty and was never read before."""
        changed = _changed(Path(self._tables[service.name].demand_csv))
        if self._read.get(service.name) != changed and (rates := self._rates(service.name)) is not None:
            self._read[service.name] = changed
            self._forecast(service, rates)
        service.into_s = min(BIN_S, max(0.0, time.time() - self._read[service.name]))

    def _rates(self, name: str) -> np.ndarray | None:
        """The rates in a service's file; None, and its error printed once, where it is faulty but was read before."""
        table = self._tables[name]
        try:
            rates = read_demand(Path(table.demand_csv), table.demand_scale, growing=True)
        except TenfoldError as error:
            if name not in self._read:
                raise
            if name not in self._faulty:
                print(f"{error} The demand of {name} stays as it was.", file=sys.stderr, flush=True)
            self._faulty.add(name)
            return None
        self._faulty.discard(name)
        return rates

    def _forecast(self, service: Service, rates: np.ndarray) -> None:
        """Set the service's rate and forecasts; the model is fitted again after each day of rows."""
        service.rate = float(rates[-1])
        if len(rates) < 2 * DAY + AHEAD[-1]:
            return
        fitted, model = self._models.get(service.name, (0, None))
        if model is None or len(rates) - fitted >= DAY:
            model = fit_demand(rates)
            self._models[service.name] = len(rates), model
        quantiles = model.quantiles(rates, np.array([len(rates) - 1]))[0]
        lines = [np.interp(np.arange(1, AHEAD[-1] + 1), AHEAD, quantiles[:, level]) for level in (0, 1)]
        service.middle, service.high = lines


def _changed(path: Path) -> float:
    """The modification time of a file; -1 where there is no such file."""
    try:
        return path.stat().st_mtime
    except OSError:
        return -1.0
