"""Whatever a policy says and a cluster does, each job has its places, no run works twice, and what is finished does not run again."""

import math
import random
import threading
import time
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tenfold.fleet.cluster.launched import LaunchedWorld
from tenfold.fleet.cluster.places import owners
from tenfold.fleet.cluster.reconcile import reconcile
from tenfold.fleet.fleet_file import fleet_of
from tenfold.fleet.ledger import Ledger
from tenfold.fleet.operate.on_pools import apply_to_pools, caps_of
from tenfold.fleet.operate.wishes import WITHDRAWN, Wishes
from tenfold.fleet.pools import Size
from tenfold.fleet.setup import Setup, pools_of, recovery, sites_of
from tenfold.fleet.site_pools import open_pool, show_power
from tenfold.fleet.slots.slots import Wish
from tenfold.launch.job import Handle, Launcher, Seen
from tenfold.launch.job_files import file_name
from tenfold.spec.errors import TenfoldError
from tenfold.spec.plugins import load

NODES, SECONDS = 5, 80
RUNS = {"one": (1, 3), "two": (2, 2), "three": (1, 1)}


class Cluster(Launcher):
    """Jobs that are only noted, by their names; `take` has what else happens to them."""

    def __init__(self, seed):
        self.chance, self.jobs, self.nodes, self.lock, self.count = random.Random(seed), {}, NODES, threading.Lock(), 0

    def up(self):
        return self.nodes

    def seen(self):
        with self.lock:
            return {name: seen for name, seen in self.jobs.items()}

    def submit(self, job):
        with self.lock:
            self.count += 1
            self.jobs[file_name(job)] = Seen(str(self.count), "running", job.resources.nodes)
            return Handle(job, str(self.count))

    def status(self, handle):
        found = self.jobs.get(file_name(handle.job))
        return found.status if found and found.id == handle.id else "stopped"

    def interrupt(self, handle):
        self.becomes(file_name(handle.job), "finished")  # it saved, and left as one that is done does

    stop = interrupt

    def becomes(self, name, status):
        with self.lock:
            if name in self.jobs:
                self.jobs[name] = self.jobs[name]._replace(status=status)

    def alive(self):
        return {name: seen for name, seen in self.seen().items() if seen.status == "running"}

    def take(self):
        """A job ends or fails, or is forgotten, or a node is gone, with what it ran, or back."""
        what, names = self.chance.random(), sorted(self.alive())
        if what < 0.15 and names:
            name = self.chance.choice(names)
            self.becomes(name, "finished" if "run-" in name else "failed")
        elif what < 0.22 and names:
            self.becomes(self.chance.choice(names), "failed")
        elif what < 0.26 and names:
            with self.lock:
                del self.jobs[self.chance.choice(names)]
        elif what < 0.32 and self.nodes > 3:
            self.nodes -= 1
            if names:
                self.becomes(self.chance.choice(names), "failed")
        elif what < 0.4 and self.nodes < NODES:
            self.nodes += 1


class Anything:
    def __init__(self, chance):
        self.chance = chance

    def decide(self, now, pool):
        holders = ["chat", *pool.running, *(job.name for job in pool.waiting), "nobody"]
        return [
            Size(self.chance.choice(holders), self.chance.randint(-1, NODES + 1), now + self.chance.uniform(0, 50))
            for _ in range(self.chance.randrange(4))
        ]


def setup():
    runs = {
        name: {"pool": "a", "command": ["x"], "hours": 1.0, "least": least, "most": most} for name, (least, most) in RUNS.items()
    }
    chat = {"pool": "a", "own": 2, "requests_per_s": 10.0, "demand_csv": "", "command": ["y"]}
    pool = {"site": "tx", "accelerator": "h100", "nodes": NODES}
    tables = {"sites": {"tx": {}}, "pools": {"a": pool}, "services": {"chat": chat}, "runs": runs, "simulation": {"tick_s": 5.0}}
    file = fleet_of(tables, "fleet.toml")
    return Setup(file, pools_of(file), sites_of(file), {}, {}, recovery())


SETUP = setup()


@settings(max_examples=25, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.integers(0, 2**32))
def test_no_place_twice_no_run_twice_and_nothing_again(seed):
    cluster, chance, ledger = Cluster(seed), random.Random(seed + 1), Ledger(":memory:", owners(SETUP.file))

    def open_world():
        return LaunchedWorld(Path("fleet"), ledger, SETUP, {"a": cluster}, lambda service, now: None)

    world, policy, refused = open_world(), Anything(chance), 0
    for now in range(SECONDS):
        if chance.random() < 0.1:
            world.arrive(float(now), chance.choice(list(RUNS)))
        cluster.take()
        try:
            reconcile(float(now), world, policy, now % 5 == 0)
        except TenfoldError as error:
            assert "failed 4 times" in str(error)
            refused += 1
        if chance.random() < 0.5:
            time.sleep(0.002)  # some turns end before the next look, some do not
        if refused or chance.random() < 0.1:
            world.close()  # as after a kill, what stands in the ledger is all that is known
            world, refused = open_world(), 0
        assert_kept(world.pools["a"], ledger, cluster)
    world.close()
    ledger.close()


def assert_kept(pool, ledger, cluster):
    alive, done = cluster.alive(), ledger.finished()
    leases = [lease for lease in ledger.leases(current=True) if lease.role != "down"]
    for name in RUNS:
        jobs = [seen for job, seen in alive.items() if job.startswith(f"tenfold-run-{name}-")]
        held = sum(lease.work == name for lease in leases)
        assert len(jobs) <= 1 and sum(seen.nodes for seen in jobs) <= NODES
        assert not (jobs and name in done) and not (held and name in done)
    held = [lease for lease in leases if lease.role == "chat"]
    assert sum("serve-" in job for job in alive) <= NODES and len(held) + sum(x.role == "train" for x in leases) <= NODES
    assert pool.training == sum(job.nodes for job in pool.running.values()) and pool.leaving >= 0 <= pool.nodes
    assert pool.serving == pool.services[0].nodes >= 0


def wish(kind, target, until=1e6, **more):
    return Wish(1, kind, target, until, **more)


def heeded(*wishes, now=0.0, nodes=2):
    """The pool `a` that was shown wishes, and the word on the first."""
    pool = open_pool(SETUP, SETUP.pools["a"])
    pool.services[0].nodes = pool.serving = nodes
    caps = caps_of(wishes)
    show_power(pool, SETUP, 0, 0.0, caps.get("tx", math.inf))
    return pool, apply_to_pools(now, wishes, {"a": pool}, SETUP, owners(SETUP.file))[1]


@pytest.mark.parametrize("target, least", [("a/5", 3), ("train", 5), ("a", 5), ("a/1", 1), ("chat", 1)])
def test_a_service_gets_the_nodes_that_a_wish_names_beside_its_own(target, least):
    pool, (state, _) = heeded(wish("lend", target, role="chat"))
    assert pool.services[0].least == least and state == ("on its way" if least > 1 else "cannot")
    assert heeded(wish("lend", target, role="chat"), nodes=5)[1][0] == ("done" if least > 1 else "cannot")


@given(st.floats(0, 1e4), st.integers(2, NODES))
def test_what_is_lent_by_a_wish_is_due_before_the_wish_ends(until, nodes):
    pool, _ = heeded(wish("lend", "train", until, role="chat"), nodes=nodes)
    service, end = pool.services[0], until - 60 - 5  # the time that the service has to leave, and a look
    assert (service.least == 5) == (end > 0) and (service.until == end) == (end > 0 and nodes > service.own)


@given(st.floats(1e-6, 1))
def test_the_cap_of_a_wish_lets_no_more_nodes_work_than_it_has_power_for(mw):
    facts = SETUP.pools["a"]
    pool, (state, _) = heeded(wish("cap", "tx", mw=mw))
    most = (1e6 * mw - NODES * facts.idle_w) / (facts.busy_w - facts.idle_w)
    assert pool.allowed <= most < pool.allowed + 1 or most < 0
    assert (state == "cannot") == (pool.allowed < 2)


def test_what_a_cluster_cannot_do_by_a_wish_is_said():
    assert "scontrol" in heeded(wish("drain", "a/5"))[1][1]
    assert "no service" in heeded(wish("lend", "a/5", role="rank"))[1][1]
    assert "tx" in heeded(wish("cap", "ca", mw=1.0))[1][1]


def test_a_wish_reaches_the_controller_of_a_cluster_and_ends_when_it_is_withdrawn():
    cluster, ledger, policy = Cluster(0), Ledger(":memory:", owners(SETUP.file)), load("policies", "lend")()
    world = LaunchedWorld(Path("fleet"), ledger, SETUP, {"a": cluster}, lambda service, now: setattr(service, "rate", 1.0))
    wishes = Wishes(ledger)

    def until(true):
        end = time.monotonic() + 60
        while not true():
            assert time.monotonic() < end
            reconcile(time.time(), world, policy, True)
            time.sleep(0.01)

    def serving():
        return sum("serve-" in job for job in cluster.alive())

    world.arrive(time.time(), "one")
    until(lambda: any("run-one" in job for job in cluster.alive()))
    made = wishes.add(Wish(0, "lend", "train", time.time() + 3600, "chat", who="olga"))
    until(lambda: serving() == 5 and wishes.of(made.id).state == "done")
    wishes.answer({made.id: (WITHDRAWN, "by olga")}, time.time())
    until(lambda: serving() <= 2 and any("run-one" in job for job in cluster.alive()))
    world.close()
    ledger.close()
