"""The simulated fleet: its file, its queue beside a plain reckoning, its bounds under any policy, its forecasts and policies."""

import dataclasses
import heapq
import itertools
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_pinball_loss

from tenfold.fleet import forecast
from tenfold.fleet.fleet_file import fleet_of, read_fleet
from tenfold.fleet.forecast import AHEAD, DAY, WEEK, backtest, fit_demand, pinball, rolling
from tenfold.fleet.policies.lend import Lending
from tenfold.fleet.policies.lyra import Lyra
from tenfold.fleet.policies.static import Static
from tenfold.fleet.pools import Job, Pool, Service, Size
from tenfold.fleet.setup import draw_work, prepare
from tenfold.fleet.simulation.results import figures
from tenfold.fleet.simulation.simulator import Simulation
from tenfold.fleet.traces import draw_jobs, drawn_demand, read_demand, read_jobs
from tenfold.spec.errors import TenfoldError
from tenfold.spec.plugins import load

TRACES = Path(__file__).parent / "data" / "traces"
PLAIN = {
    "simulation": {"days": 1.0, "history_days": 4.0, "tick_s": 300.0},
    "sites": {"tx": {"region": "TX"}},
    "pools": {"a": {"site": "tx", "accelerator": "h100", "nodes": 60, "accelerators_per_node": 1}},
    "services": {"chat": {"pool": "a", "own": 30, "requests_per_s": 100.0, "demand_csv": str(TRACES / "m-small.csv")}},
    "jobs": {"philly": {"trace_csv": str(TRACES / "philly.csv"), "pools": ["a"], "load": 1.0, "state_gb_per_node": 14.0}},
}


def changed(**tables):
    """The plain fleet with fields of some of its tables replaced."""
    fleet = json.loads(json.dumps(PLAIN))
    for path, fields in tables.items():
        at = fleet
        for name in path.split("__"):
            at = at.setdefault(name, {})
        at.update(fields)
    return fleet_of(fleet, "fleet.toml")


@pytest.fixture(scope="module")
def setup():
    return prepare(changed())


def without_failures(setup):
    pools = {name: dataclasses.replace(pool, per_day=0.0) for name, pool in setup.pools.items()}
    return dataclasses.replace(setup, pools=pools)


@pytest.mark.parametrize(
    "tables, said",
    [
        ({"pools__a": {"site": "ty"}}, "no site 'ty' (did you mean 'tx'?)"),
        ({"pools__a": {"nodes": 20}}, "services own 30 nodes of a, which has 20: 10 more are needed"),
        ({"pools__a": {"host_core": 3}}, "host_core"),
        (
            {"services__chat": {"needs": {"host_cores": 128}}},
            "chat needs 128 host cores of a node, and one of a has 96: 32 more are needed",
        ),
        ({"services__chat": {"pool": "b"}}, "no pool 'b'"),
        ({"jobs__philly": {"load": "high"}}, "jobs.philly: load must be a number > 0 and <= 100, not 'high'"),
        ({"jobs__philly": {"pools": []}}, "jobs.philly: pools must be a list that is not empty, not []"),
        ({"jobs__philly": {"longest_interval_s": 0}}, "jobs.philly: longest_interval_s must be a number > 0 and <= 1e+09, not 0"),
        ({"services__chat": {"own": 60}}, "services have every node of a, and none is left for the jobs philly"),
        ({"services__chat": {"requests_per_s": 0}}, "services.chat: requests_per_s must be a number >= 1e-06 and <= 1e+09, not 0"),
        ({"services__chat": {"own": -1}}, "services.chat: own must be a whole number >= 0, not -1"),
        ({"pools__a": {"nodes": 0}}, "pools.a: nodes must be a whole number >= 1 and <= 1048576, not 0"),
        ({"pools__a": {"ram_gib": math.nan}}, "pools.a: ram_gib must be a number >= 0, not nan"),
        (
            {"sites__tx": {"power_cap_mw": [1.0] * 3}},
            "sites.tx: power_cap_mw must be a number > 0 and <= 1e+06 or 24 of them, one for each hour",
        ),
        ({"simulation": {"tick_s": 0}}, "tick_s in the table [simulation] must be a number >= 1 and <= 3600, not 0"),
        ({"simulation": {"seeds": 0}}, "seeds in the table [simulation] must be a whole number >= 1 and <= 10000, not 0"),
    ],
)
def test_a_file_that_cannot_work_says_in_a_sentence_what_binds(tables, said):
    with pytest.raises(TenfoldError) as error:
        changed(**tables)
    assert said in str(error.value) and str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    "tables, said",
    [
        ({"sites__tx": {"power_cap_mw": 0.01}}, "The power cap of tx is too low"),
        ({"services__chat": {"requests_per_s": 20.0}}, "The pool a is too small"),
        ({"services__chat": {"demand_csv": "/nowhere.csv"}}, "not a trace of demand"),
    ],
)
def test_power_and_nodes_that_do_not_suffice_are_named(tables, said):
    with pytest.raises(TenfoldError, match=said):
        prepare(changed(**tables))


def test_a_trace_with_gaps_is_filled_between_its_neighbours(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("t_seconds,requests_per_second\n0,10\n600,\n1800,40\n")
    assert read_demand(path).tolist() == [10, 20, 30, 40]
    assert drawn_demand(read_demand(TRACES / "m-small.csv"), 30 * DAY, 0).shape == (30 * DAY,)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.floats(1e6, 1e9))
def test_drawn_jobs_make_the_work_that_is_asked_for_and_no_job_more(seed, work):
    rows = read_jobs(TRACES / "philly.csv")
    drawn = draw_jobs(rows, 7 * 86_400, work, rows.gpus.astype(int), seed)
    made = drawn.seconds * drawn.gpus
    assert sum(sorted(made)[:-1]) <= work * (1 + 1e-9) and made.sum() >= work * (1 - 1e-9)
    assert (np.diff(drawn.came) >= 0).all() and drawn.came[0] >= 0 and drawn.came[-1] <= 7 * 86_400


def test_guesses_of_two_tables_of_jobs_err_by_themselves():
    jobs = PLAIN["jobs"]["philly"]
    setup = without_failures(prepare(changed(jobs__philly={**jobs, "load": 0.3}, jobs__other={**jobs, "load": 0.3})))
    errors = {table: [job.estimate for name, job in draw_work(setup, 0) if name == table] for table in setup.file.jobs}
    assert not set(errors["philly"]) & set(errors["other"]) and len(errors["other"]) > 1


def test_static_queues_as_a_plain_reckoning_of_first_come_first_served():
    """Jobs of one node on as many as training has: each starts when a node is free, in order."""
    calm = without_failures(prepare(changed(jobs__philly={"load": 8.0})))
    rows = {name: dataclasses.replace(rows, gpus=np.ones_like(rows.gpus)) for name, rows in calm.traces.items()}
    calm = dataclasses.replace(calm, traces=rows)
    out = Simulation(calm, Static(), 3).run()
    free, queued = [0.0] * 30, []
    for _, job in draw_work(calm, 3):
        began = max(job.came, heapq.heappop(free))
        heapq.heappush(free, began + job.restart_s + job.work_s)
        if began <= 86_400:
            queued.append(began - job.came)
    assert sorted(begun - came for came, begun, _, _ in out.jobs if begun is not None) == pytest.approx(sorted(queued))
    assert max(queued) > 0


class AnyPolicy:
    """Sizes by chance, with sense or without, after a check of what it is shown."""

    def __init__(self, seed):
        self.chance, self.looks = random.Random(seed), 0

    def decide(self, now, pool):
        self.looks += 1
        assert pool.training == sum(job.nodes for job in pool.running.values())
        assert pool.serving == sum(service.nodes for service in pool.services)
        assert all(job.least <= job.nodes <= job.most for job in pool.running.values())
        assert all(service.nodes >= 0 for service in pool.services)
        assert not any(job.nodes for job in pool.waiting) and pool.leaving >= 0
        assert len({job.name for job in (*pool.running.values(), *pool.waiting)}) == len(pool.running) + len(pool.waiting)
        if not pool.periodic:
            return []
        jobs = [*pool.running.values(), *pool.waiting]
        chosen = self.chance.sample(jobs, min(3, len(jobs)))
        sizes = [Size(job.name, self.chance.randint(-1, job.most + 1), None, "", self.chance.random() < 0.5) for job in chosen]
        services = [Size(s.name, self.chance.randint(-1, 40), now + 3600) for s in pool.services if self.chance.random() < 0.3]
        return [*sizes, *services, Size("nobody", 3)]


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_a_policy_says_nodes_are_held_once_and_jobs_end_once(setup, seed):
    policy = AnyPolicy(seed)
    out = Simulation(setup, policy, seed % 5).run()
    assert policy.looks > 288
    assert len(out.jobs) == len(draw_work(setup, seed % 5))
    assert all(row[1] + row[2] + row[3] + row[4] <= row[5] + row[6] for row in out.series)
    for came, begun, ended, _ in out.jobs:
        assert begun is None or (came <= begun and (ended is None or begun < ended))


def test_a_service_gives_back_what_it_borrowed_by_its_deadline(setup):
    class Greedy:
        asked = False

        def decide(self, now, pool):
            sizes = [] if self.asked or now < 600 else [Size("chat", 40, 7200.0)]
            self.asked = self.asked or bool(sizes)
            return sizes

    out = Simulation(without_failures(setup), Greedy(), 0).run()
    ready = {round(row[0], 2): row[2] for row in out.series}
    assert ready[1.5] == 40 and ready[2.5] == 30


def test_a_job_comes_to_a_pool_where_it_fits_beside_what_services_own():
    setup = without_failures(prepare(changed(
        pools__b={"site": "tx", "accelerator": "h100", "nodes": 20, "accelerators_per_node": 1},
        services__chat={"own": 56}, jobs__philly={"pools": ["a", "b"], "load": 4.0},
    )))  # fmt: skip
    assert any(job.least > 4 for _, job in draw_work(setup, 0))

    class Fitting(Static):
        def decide(self, now, pool):
            assert all(job.least <= pool.nodes - pool.own for job in pool.waiting)
            return super().decide(now, pool)

    Simulation(setup, Fitting(), 0).run()


def test_power_stays_under_a_cap_that_changes_by_the_hour():
    full = prepare(changed()).pools["a"].peak_w / 1e6
    cap = [full * (0.8 if 8 <= hour < 16 else 1.0) for hour in range(24)]
    setup = prepare(changed(sites__tx={"power_cap_mw": cap}, jobs__philly={"load": 4.0}))
    for policy in ("static", "borrow", "lyra", "lend"):
        out = Simulation(setup, load("policies", policy)(), 0).run()
        assert all(row[11] <= row[12] * (1 + 1e-9) for row in out.series), policy
        assert max(row[11] for row in out.series) > 0.85e6 * full and out.stops > 0


def test_a_cap_that_falls_takes_no_node_from_a_service_that_no_policy_shrinks(setup):
    site = dataclasses.replace(setup.sites["tx"], cap_w=setup.pools["a"].peak_w * (1 - 0.03 * np.arange(24)))

    class Shrinking:
        """Takes a node from the service once an hour, and says at each other look that it keeps what it has."""

        holds, short = 30, False

        def decide(self, now, pool):
            assert pool.services[0].nodes == pool.serving == self.holds
            self.short = self.short or pool.room < 0
            self.holds -= pool.periodic and now % 3600 == 0
            return [Size("chat", self.holds)]

    policy = Shrinking()
    Simulation(dataclasses.replace(setup, sites={"tx": site}), policy, 0).run()
    assert policy.holds == 5 and policy.short


def test_the_highest_power_is_that_of_one_moment():
    """Two pools whose services work in turns: one of them at a time."""
    pool, chat = PLAIN["pools"]["a"], {**PLAIN["services"]["chat"], "own": 0}
    services = {name: {**chat, "pool": name} for name in ("a", "b")}
    fleet = {**PLAIN, "pools": {"a": pool, "b": pool}, "services": services, "jobs": {}}
    calm = without_failures(prepare(fleet_of(fleet, "fleet.toml")))

    class Turns:
        def decide(self, now, pool):
            return [Size(pool.name, 30 if (now // 3600) % 2 == (pool.name == "a") else 0)]

    found, node = figures(Simulation(calm, Turns(), 0).run(), 1.0), calm.pools["a"]
    assert found["peak_mw"] * 1e6 == pytest.approx(120 * node.idle_w + 30 * (node.busy_w - node.idle_w))


def test_days_in_which_jobs_only_finish_change_no_figure_of_node_hours(setup):
    class Restless:
        """Stops every job once an hour without a checkpoint, and starts what waits: work is lost all the time."""

        def decide(self, now, pool):
            if pool.periodic and now % 3600 == 0:
                return [Size(name, 0, save=False) for name in pool.running]
            return [Size(job.name, job.least) for job in pool.waiting[:20]]

    def run(drain_days):
        file = changed(simulation={"drain_days": drain_days}, jobs__philly={"load": 4.0})
        return figures(Simulation(dataclasses.replace(setup, file=file), Restless(), 0).run(), 1.0 + drain_days)

    without, drained = run(0.0), run(0.5)
    assert drained["stops"] > without["stops"] and without["lost_policy_h"] > 0
    node_hours = ["usage", "training_share", "serving_share", "idle_share", "lost_policy_h", "lost_failures_h", "energy_mwh"]
    assert {key: drained[key] for key in node_hours} == pytest.approx({key: without[key] for key in node_hours})


def test_a_seed_gives_the_same_figures_and_policies_meet_the_same_jobs(setup):
    runs = {name: Simulation(setup, load("policies", name)(), 1).run() for name in ("lend", "static")}
    again = Simulation(setup, Lending(), 1).run()
    assert figures(runs["lend"], 1.0) == figures(again, 1.0)
    assert sorted(job[0] for job in runs["lend"].jobs) == sorted(job[0] for job in runs["static"].jobs)


@pytest.mark.parametrize("wrong", [1 / 3, 3.0])
def test_the_harm_of_a_forecast_that_is_wrong_by_three_is_bounded(setup, wrong):
    """Too low: the rate of the moment decides, and what is missed is at most what it rises by in a switch. Too high: services hold
    what the pool has and nothing is missed. In both the work lost to switches is a twentieth of the training at most."""
    known = setup.services["chat"]
    off = dataclasses.replace(known, middle=known.middle * wrong, high=known.high * wrong)
    run = Simulation(dataclasses.replace(setup, services={"chat": off}), Lending(), 0).run()
    out, meter = figures(run, 1.0), run.meters["a"]
    switch_s = meter.pool.switch_s + setup.file.simulation.tick_s
    times = np.arange(0, 86_400 - switch_s, 60.0)
    rises = [max(0.0, known.at(t + switch_s) - known.at(t) / Lending().load) for t in times]
    bound = sum(rises) * 60 / sum(known.at(t) * 60 for t in times)
    assert out["missed"] <= (bound + 0.002 if wrong < 1 else 0.002)
    assert out["lost_policy_h"] <= 0.05 * meter.training_s / 3600


def test_lyra_chooses_sizes_as_well_as_trying_them_all():
    chance = random.Random(0)
    for _ in range(20):
        jobs = [Job(f"j{i}", 2, 2 + chance.randint(1, 3), 0.0, chance.uniform(1e3, 1e5), 2, restart_s=60) for i in range(3)]
        room = chance.randint(1, 6)
        pool = Pool("p", 6 + room, [], {job.name: job for job in jobs}, training=6)
        sizes = {job.name: 2 for job in jobs} | {size.holder: size.nodes for size in Lyra().decide(1.0, pool)}

        def saved(job, nodes):
            left = job.left_s(1.0)
            return left - left / job.speed(nodes) - job.restart_s if nodes > 2 else 0.0

        best = max(
            sum(saved(job, nodes) for job, nodes in zip(jobs, chosen, strict=True))
            for chosen in itertools.product(*(range(2, job.most + 1) for job in jobs))
            if sum(chosen) <= 6 + room
        )
        assert sum(saved(job, sizes[job.name]) for job in jobs) == pytest.approx(best)
        assert sum(sizes.values()) <= 6 + room


def test_lend_takes_what_costs_the_least_and_says_why():
    service = Service("chat", 4, 10.0, nodes=4, rate=58.0)
    big = Job("big", 4, 4, 0.0, 1e5, 4, save_s=10, restart_s=600)
    small = Job("small", 2, 2, 0.0, 1e5, 2, save_s=10, restart_s=60)
    elastic = Job("elastic", 2, 3, 0.0, 1e5, 3, save_s=10, restart_s=60)
    pool = Pool("p", 13, [service], {job.name: job for job in (big, small, elastic)}, training=9, serving=4)
    sizes = {size.holder: size for size in Lending().decide(1000.0, pool)}
    assert sizes["chat"].nodes == math.ceil(58 / 9) and sizes["chat"].until > 1000 and "4 x 10" in sizes["chat"].why
    assert set(sizes) == {"chat", "elastic", "small"} and sizes["small"].nodes == 0 and sizes["elastic"].nodes == 2
    assert all(size.save and size.why for size in sizes.values())


def test_the_forecast_beats_seasonal_naive_and_knows_nothing_of_the_future():
    rates = read_demand(TRACES / "m-small.csv")
    found = backtest(rates, first_days=12.0)
    assert found["pinball"] < found["pinball_naive"]
    model = fit_demand(rates[: 6 * DAY])
    other = np.concatenate([rates[: 6 * DAY], rates[6 * DAY :] * 7])
    origin = np.array([6 * DAY - 1])
    assert (model.quantiles(rates, origin) == model.quantiles(other, origin)).all()
    assert model.quantiles(rates, origin).shape == (1, len(AHEAD), 2)
    with pytest.raises(TenfoldError, match="two and a half days"):
        fit_demand(rates[:DAY])
    for days, first in ((1, 7.0), (7, 7.0), (9, 1.0)):
        with pytest.raises(TenfoldError, match="A backtest needs more than"):
            backtest(rates[: days * DAY], first)


def test_a_rolling_forecast_keeps_the_time_of_day_whatever_history_it_begins_with(monkeypatch):
    """A model knows the time of day by the index of a bin: what it is fitted to must begin at a whole day."""
    starts = []

    class Model:
        def quantiles(self, rates, origins):
            return np.ones((len(origins), len(AHEAD), 1))

    def fit(rates, levels):
        starts.append(int(rates[0]) - 1)
        return Model()

    monkeypatch.setattr(forecast, "fit_demand", fit)
    found = rolling(1.0 + np.arange(5 * WEEK), first=round(2.5 * DAY), every=4 * WEEK, levels=(0.5,))
    assert len(found) == 5 * WEEK - round(2.5 * DAY)
    assert len(starts) == 2 and starts[1] > 0 and all(start % DAY == 0 for start in starts)


def test_a_high_forecast_that_is_too_low_is_corrected_by_the_same_factor_in_every_week(monkeypatch):
    """Rates are exp(N(0, 0.3)) and every model says 1: the correction must make it their 90 % quantile, and leave the median."""

    class Model:
        def quantiles(self, rates, origins):
            return np.ones((len(origins), len(AHEAD), 2))

    monkeypatch.setattr(forecast, "fit_demand", lambda rates, levels: Model())
    rates = np.exp(np.random.default_rng(0).normal(0, 0.3, 5 * WEEK))
    found = rolling(rates, first=3 * DAY)
    assert (found[..., 0] == 1).all()
    assert found[WEEK:, :, 1] == pytest.approx(np.exp(0.3 * NormalDist().inv_cdf(0.9)), rel=0.1)


def test_pinball_is_that_of_scikit_learn():
    draw = np.random.default_rng(0)
    actual, quantiles = draw.random(50), draw.random((50, 2))
    theirs = [mean_pinball_loss(actual, quantiles[:, i], alpha=level) for i, level in enumerate((0.5, 0.9))]
    assert pinball(actual, quantiles, (0.5, 0.9)) == pytest.approx(np.mean(theirs))


FILE = """
[simulation]
days = 0.5
history_days = 4
tick_s = 600
seeds = 2
[sites.tx]
region = "TX"
power_cap_mw = 1
[pools.a]
site = "tx"
accelerator = "h100"
nodes = 60
accelerators_per_node = 1
[services.chat]
pool = "a"
own = 30
requests_per_s = 100
demand_csv = "m-small.csv"
[jobs.philly]
trace_csv = "philly.csv"
pools = ["a"]
"""


def test_the_command_writes_a_page_with_each_policys_day(tmp_path):
    for name in ("m-small.csv", "philly.csv"):
        (tmp_path / name).write_bytes((TRACES / name).read_bytes())
    file, page = tmp_path / "fleet.toml", tmp_path / "report.html"
    file.write_text(FILE)
    assert read_fleet(file).services["chat"].demand_csv == str(tmp_path / "m-small.csv")
    command = [sys.executable, "-m", "tenfold", "fleet", "simulate", file, "--against", "static", "--out", page, "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert set(found["means"]) == {"lend", "static"} and len(found["runs"]["lend"]) == 2
    assert page.read_text().count("<svg") == 2 and "queueing" in page.read_text()
