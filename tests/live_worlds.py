"""The same recorded events for a simulated and a live fleet: demand, runs that come, nodes that die.

Started as a program it is a live controller, told by a line of JSON on its input when it is and what comes, and answering with what its
policy decided.
"""

import importlib
import json
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from tenfold.fleet.cluster.launched import LaunchedWorld
from tenfold.fleet.cluster.places import owners
from tenfold.fleet.cluster.reconcile import reconcile
from tenfold.fleet.fleet_file import fleet_of
from tenfold.fleet.ledger import Ledger
from tenfold.fleet.policies.lend import Lending
from tenfold.fleet.pools import Job
from tenfold.fleet.setup import ServiceFacts, Setup, pools_of, recovery, sites_of
from tenfold.fleet.simulation.outcome import Recorded
from tenfold.fleet.simulation.simulator import Simulation
from tenfold.fleet.site_pools import show_demand

TICK_S, ALONE, TOY = 300.0, "alone", "toy"
# Stands for Python: runs the command that torchrun would, once on each node.
SCRIPTS = {ALONE: '#!/bin/bash\nwhile [ "$1" != --no-python ]; do shift; done\nshift\nexec "$@"\n'}
# Work that leaves a mark where it runs, saves when it is told to, and ends when it is done.
SCRIPTS[TOY] = """#!/bin/bash
mark="$2/$1@${SLURMD_NODENAME:-$RAY_NODE}@$$"
trap 'rm "$mark"; exit 0' TERM USR1 INT
touch "$mark"
until [ -e "$2/done-$1" ]; do sleep 0.2; done
rm "$mark"
"""
RATES = [12, 12, 12, 15, 30, 33, 30, 12, 5, 5, 5, 12, 12, 12, 12]  # by ten minutes; a node of chat answers 10
RUNS = {  # when it comes, its pool, least and most nodes, and seconds of work
    "first": (130.0, "a", 1, 2, 3000.0),
    "second": (750.0, "a", 1, 1, 1800.0),
    "third": (100.0, "b", 2, 4, 6000.0),
    "fourth": (1510.0, "b", 1, 2, 900.0),
}
DEATHS = [(2230.0, "b", "third", 1000.0), (6650.0, "a", "chat", 700.0)]


@dataclass
class Remembered:
    """A policy whose decisions are written down, each with who held how much before it."""

    policy: Lending
    decided: list

    def decide(self, now, pool):
        sizes = self.policy.decide(now, pool)
        held = {service.name: service.nodes for service in pool.services} | {job.name: job.nodes for job in pool.running.values()}
        self.decided.append([now, pool.name, pool.periodic, [list(size) for size in sizes], held])
        return sizes


def setup_of(folder, pools):
    """A fleet of `pools`, with the nodes of each; chat is served in the first."""
    command = [str(folder / TOY), "chat", str(folder)]
    runs = {
        name: {"pool": pool, "least": least, "most": most, "hours": work_s / 3600, "processes_per_node": 1, "save_s": 20, "restart_s": 40.0,
               "command": [str(folder / TOY), name, str(folder)]}
        for name, (_, pool, least, most, work_s) in RUNS.items() if pool in pools
    }  # fmt: skip
    pool = {"site": "tx", "accelerator": "h100", "accelerators_per_node": 4}
    chat = {
        "pool": "a",
        "own": pools["a"] // 2,
        "requests_per_s": 10.0,
        "start_s": 30.0,
        "leave_s": 20,
        "demand_csv": "",
        "command": command,
    }
    file = fleet_of({
        "simulation": {"days": 8640 / 86400, "tick_s": TICK_S}, "sites": {"tx": {"region": "TX"}},
        "pools": {name: {**pool, "nodes": nodes, "partition": name, "resource": name} for name, nodes in pools.items()},
        "services": {"chat": chat}, "runs": runs, "jobs": {name: {"trace_csv": "", "pools": [name]} for name in pools},
    }, "fleet.toml")  # fmt: skip
    rates = np.array(RATES, float) * pools["a"] / 4
    middle = np.array([np.resize(np.append(rates[i:], rates[:i]), 72) for i in range(len(rates))])
    services = {"chat": ServiceFacts("chat", file.services["chat"], rates, middle, 1.1 * middle)}
    return Setup(file, pools_of(file), sites_of(file), services, {}, recovery() | {"detection_s": 0.0})


def simulated(setup):
    """The decisions of a simulation, and when runs ended by their names."""
    work = []
    for name, t in setup.file.runs.items():
        job = Job(name, t.least, t.most, RUNS[name][0], t.hours * 3600, save_s=20, restart_s=40.0, scaling=t.scaling)
        work.append((t.pool, job))
    work.sort(key=lambda row: row[1].came)
    policy = Remembered(Lending(), [])
    deaths = [death for death in DEATHS if death[1] in setup.pools]
    out = Simulation(setup, policy, recorded=Recorded(work, deaths)).run()
    names = {job.came: job.name for _, job in work}
    return json.loads(json.dumps(policy.decided)), {names[came]: ended for came, _, ended, _ in out.jobs if ended is not None}


def launcher_of(on, folder, pool):
    """The launcher of a pool, whose nodes start `alone` in the place of Python under torchrun."""
    kind = getattr(importlib.import_module(f"tenfold.launch.{on}"), f"{on.title()}Launcher")
    options = {"partition": pool, "requeues": 0} if on == "slurm" else {"resource": pool}
    with socket.socket() as free:
        free.bind(("", 0))
        return type("Plain", (kind,), {"python": str(folder / ALONE)})(folder=folder, port=free.getsockname()[1], **options)


def control(folder, on, pools):
    """A live controller, until its input ends."""
    setup, policy = setup_of(folder, pools), Remembered(Lending(), [])
    facts = setup.services["chat"]
    world = LaunchedWorld(
        folder, Ledger(folder / "ledger.db", owners(setup.file)), setup, {name: launcher_of(on, folder, name) for name in pools},
        lambda service, now: show_demand(service, facts, now),
    )  # fmt: skip
    for line in sys.stdin:
        told = json.loads(line)
        if told["comes"]:
            world.arrive(told["now"], told["comes"])
        policy.decided.clear()
        reconcile(told["now"], world, policy, told["periodic"])
        print(json.dumps(policy.decided), flush=True)
    world.close()


class Controller:
    """One in a process of its own, that can be killed at any moment and goes on."""

    def __init__(self, folder, on, pools):
        self._folder, self._on, self._pools = folder, on, pools
        for name, text in SCRIPTS.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def __enter__(self):
        words = [sys.executable, __file__, self._folder, self._on, json.dumps(self._pools)]
        self._process = subprocess.Popen(list(map(str, words)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def kill(self):
        self._process.kill()
        self._process.wait()
        self.__enter__()

    def reconcile(self, now, periodic=False, comes=None):
        self._process.stdin.write(json.dumps({"now": now, "periodic": periodic, "comes": comes}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the controller ended with {self._process.wait()}"
        return json.loads(line)

    def __exit__(self, *error):
        self._process.kill()
        self._process.wait()


def marks(folder):
    """Who works on which nodes, as the work itself says."""
    found = {}
    for mark in folder.glob("*@*@*"):
        name, node, number = mark.name.split("@")
        if psutil.pid_exists(int(number)):
            found.setdefault(name, []).append(node)
    return {name: sorted(nodes) for name, nodes in found.items()}


class Replay:
    """Lets the events of a simulation happen to a live fleet, and compares each decision at its time."""

    def __init__(self, controller, folder, cluster, setup):
        self._controller, self._folder, self._cluster = controller, folder, cluster
        self._decisions, ended = simulated(setup)
        deaths = [death for death in DEATHS if death[1] in setup.pools]
        happens = [(at, "dies", holder) for at, _, holder, _ in deaths] + [(at + back, "is back", "") for at, *_, back in deaths]
        self._happens = sorted(happens + [(at, "ends", name) for name, at in ended.items()])
        self._comes, self._dead = {RUNS[name][0]: name for name in setup.file.runs}, []

    def run(self, last_s, kills):
        """Until a time. After the decisions of the numbers `kills` the controller is killed while it carries them out. Returns how
        many decisions were compared."""
        groups = []  # a periodic look is at all pools
        for one in self._decisions:
            if groups and one[2] and groups[-1][0][2] and one[0] == groups[-1][0][0]:
                groups[-1].append(one)
            elif one[0] <= last_s:
                groups.append([one])
        for number, group in enumerate(groups):
            assert self._got(group) == group
            if number in kills:
                self._controller.kill()
        return sum(map(len, groups))

    def _got(self, group):
        """What the live controller decided at the time of a group."""
        now, _, periodic, *_ = group[0]
        while self._happens and self._happens[0][0] <= now:
            self._happen(*self._happens.pop(0))
        if not periodic:
            return self._wait(lambda: self._controller.reconcile(now, comes=self._comes.get(now)), f"a decision comes at {now}")
        expected = {who: nodes for one in group for who, nodes in one[4].items() if nodes}

        def carried_out():
            assert not (got := self._controller.reconcile(now)), got
            return self._counts() == expected

        self._wait(carried_out, f"{expected} work at {now}")
        return self._controller.reconcile(now, periodic=True)

    def _happen(self, at, what, who):
        if who:
            self._wait(lambda: who in marks(self._folder), f"{who} works at {at}")
        if what == "ends":
            (self._folder / f"done-{who}").touch()
        elif what == "dies":
            self._dead.append(marks(self._folder)[who][-1])
            self._cluster.kill(self._dead[-1])
        else:
            self._cluster.start(self._dead.pop(0))

    def _counts(self):
        return {name: len(nodes) for name, nodes in marks(self._folder).items()}

    def _wait(self, true, what, timeout_s=300):
        end = time.monotonic() + timeout_s
        while not (found := true()):
            assert time.monotonic() < end, f"after {timeout_s} s it is not so that {what}, but {self._counts()}"
            time.sleep(0.1)
        return found


if __name__ == "__main__":
    control(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
