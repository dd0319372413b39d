"""Fleet files that cannot work: each says in a sentence what binds, and none ends in a traceback."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fleet_simulation import PLAIN, changed

from tenfold.fleet.fleet_file import (
    JobsTable,
    PoolTable,
    Resources,
    ServiceTable,
    SimulationTable,
    SiteTable,
    fleet_of,
    read_fleet,
)
from tenfold.fleet.setup import prepare
from tenfold.fleet.traces import read_demand, read_jobs
from tenfold.spec.errors import TenfoldError

TABLES = {"sites": SiteTable, "pools": PoolTable, "services": ServiceTable, "jobs": JobsTable}
NUMBERS = st.one_of(st.integers(-2, 200), st.integers(), st.floats(), st.sampled_from([2**63, 1e-300, 1e300, 43_200.0]))
WORDS = st.sampled_from(["", "a", "tx", "b", "h100", "TX", "\0", "/", "chat", "philly-0"])
VALUES = st.one_of(
    NUMBERS, WORDS, st.none(), st.booleans(), st.lists(NUMBERS, max_size=24), st.lists(WORDS, max_size=3), st.just({})
)


@st.composite
def edits(draw):
    """A field of some table, its own or a misspelt one, and what an editor made of it."""
    where = draw(st.sampled_from(["", "simulation", "needs", *TABLES]))
    if not where:
        return [draw(st.sampled_from(["simulation", "site", *TABLES]))], draw(VALUES)
    if where == "simulation":
        return ["simulation", draw(st.sampled_from([*SimulationTable.__struct_fields__, "day"]))], draw(VALUES)
    kind = "services" if where == "needs" else where
    field = draw(st.sampled_from([*(Resources if where == "needs" else TABLES[kind]).__struct_fields__, "node"]))
    return [kind, next(iter(PLAIN[kind])), *(["needs"] if where == "needs" else []), field], draw(VALUES)


def edited(changes):
    """The plain fleet with fields set, where their tables still are."""
    fleet = json.loads(json.dumps(PLAIN))
    fleet["simulation"] |= {"history_days": 2.5, "days": 0.5}
    for path, value in changes:
        at = fleet
        for name in path[:-1]:
            at = at.setdefault(name, {}) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at[path[-1]] = value
    return fleet


def assert_said(call):
    """Whether it works; otherwise it ends in a sentence."""
    try:
        return call()
    except TenfoldError as error:
        assert "\n" not in str(error) and str(error).endswith((".", "?)")) and str(error).count("Object") == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(edits(), min_size=1, max_size=3))
def test_no_edited_fleet_file_gives_a_traceback(changes):
    fleet = assert_said(lambda: fleet_of(edited(changes), "fleet.toml"))
    if fleet and fleet.simulation.days <= 1 and fleet.simulation.history_days <= 3 and not fleet.services:
        assert_said(lambda: prepare(fleet))


@settings(max_examples=8, deadline=None)
@given(edits())
def test_no_accepted_fleet_file_gives_a_traceback_when_it_is_prepared(change):
    fleet = assert_said(lambda: fleet_of(edited([change]), "fleet.toml"))
    if fleet and fleet.simulation.days <= 1 and fleet.simulation.history_days <= 3:
        assert_said(lambda: prepare(fleet))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 400), st.integers(0, 30), st.binary(max_size=8))
def test_no_torn_file_gives_a_traceback(tmp_path_factory, at, cut, put):
    text = b'[sites.tx]\nregion = "TX"\n[pools.a]\nsite = "tx"\naccelerator = "h100"\nnodes = 60\n'
    text += b'[services.chat]\npool = "a"\nown = 3\nrequests_per_s = 4.3\ndemand_csv = "demand.csv"\nneeds = { host_cores = 3 }\n'
    file = tmp_path_factory.getbasetemp() / "fleet.toml"
    file.write_bytes(text[:at] + put + text[at + cut :])
    assert_said(lambda: read_fleet(file))


@pytest.mark.parametrize(
    "tables, said",
    [
        ({"sites__tx": {"region": "Teksas"}}, "the site tx: There is no region 'Teksas' (did you mean 'texas'?)"),
        ({"pools__a": {"host_core": 3}}, "pools.a has no setting 'host_core' (did you mean 'host_cores'?)"),
        ({"pools__b": {"site": "tx"}}, "pools.b needs accelerator and nodes"),
        ({"services__chat": {"least": 61}}, "services hold at least 61 nodes of a, which has 60: 1 more are needed"),
        ({"services__chat": {"least": 60}}, "none is left for the jobs philly"),
        ({"services__chat": {"start_s": 50_000.0}}, "start_s must be a number >= 0 and <= 43200, not 50000.0"),
        ({"services__chat": {"needs": {"cores": 2}}}, "services.chat.needs has no setting 'cores'"),
        ({"jobs__philly": {"pools": ["a", "a"]}}, "jobs philly: the pool 'a' is named 2 times: name it once"),
        ({"services__philly-0": PLAIN["services"]["chat"] | {"own": 1}}, "the service philly-0 has the name of a job of philly"),
        ({"simulation": {"history_days": 1.0}}, "history_days in the table [simulation] must be a number >= 2.5"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_change(tables, said):
    with pytest.raises(TenfoldError) as error:
        changed(**tables)
    assert said in str(error.value)


def test_a_cap_says_by_how_much_it_binds():
    """Raised by what the sentence says it no longer binds; by a little less it still does."""
    plain = json.loads(json.dumps(PLAIN))
    plain["services"] = {}
    for cap_mw, what in ((0.01, "idle nodes draw"), (None, "needs for one of philly")):
        found = prepare(fleet_of(plain, "fleet.toml"))
        pool = found.pools["a"]
        cap_mw = cap_mw or 1e-6 * (pool.nodes * pool.idle_w + 0.5 * (pool.busy_w - pool.idle_w))
        tight = plain | {"sites": {"tx": {"region": "TX", "power_cap_mw": cap_mw}}}
        with pytest.raises(TenfoldError, match=what) as error:
            prepare(fleet_of(tight, "fleet.toml"))
        more = float(str(error.value).split("raise it by ")[1].split(" MW")[0])
        idle = 1e-6 * pool.nodes * pool.idle_w
        enough = idle if "idle" in what else idle + 1e-6 * (pool.busy_w - pool.idle_w)
        assert cap_mw + more == pytest.approx(enough, rel=0.01)


@pytest.mark.parametrize(
    "text", ["", "t,r\n", "t,r\n0,1\n", "t,r\n0,inf\n9,1\n", "t,r\n0,1e300\n9,1\n", "t,r\n0,1\n1e18,1\n", "t,r\nnan,1\n0,1\n", "\0,\n\0,1"]
)  # fmt: skip
def test_a_broken_trace_of_demand_is_a_sentence(tmp_path, text):
    (tmp_path / "demand.csv").write_text(text)
    with pytest.raises(TenfoldError, match="demand.csv"):
        read_demand(tmp_path / "demand.csv")


@pytest.mark.parametrize(
    "row", ["", "2017-10-03", "2017-10-03,60", "x,60,1", "2017-10-03,inf,1", "2017-10-03,60,nan", "2017-10-03,-1,1", "2017-10-03,60,1e300", "nan,60,1", "1e18,60,1"]
)  # fmt: skip
def test_a_broken_trace_of_jobs_is_a_sentence(tmp_path, row):
    (tmp_path / "jobs.csv").write_text(f"timestamp,duration,num_gpus\n{row}\n")
    with pytest.raises(TenfoldError, match="jobs.csv"):
        read_jobs(tmp_path / "jobs.csv")


def test_jobs_come_by_dates_or_by_seconds(tmp_path):
    for name, first, second in (("dates.csv", "2027-01-01T00:00:00", "2027-01-01T00:15:00"), ("seconds.csv", "5", "905.0")):
        (tmp_path / name).write_text(f"timestamp,duration,num_gpus\n{first},60,8\n{second},60,8\n")
        assert read_jobs(tmp_path / name).came.tolist() == [0, 900]


def test_a_number_that_is_infinite_is_refused_wherever_it_stands():
    for kind, table in TABLES.items():
        for field in table.__struct_fields__:
            assert assert_said(lambda: fleet_of(edited([([kind, next(iter(PLAIN[kind])), field], math.inf)]), "fleet.toml")) is None  # noqa: B023
