"""Staged sites: the optimum beside exhaustive search, trees, the value of staging by hand, limits, sentences, the command."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as with_fields
from scipy.optimize import linprog

from tenfold.plan.document import SCHEMA
from tenfold.plan.sites import commands
from tenfold.plan.sites.answer import Question, answer
from tenfold.plan.sites.demand import read_demand, sample, today
from tenfold.plan.sites.inputs import example_text, read_sites
from tenfold.plan.sites.portfolio import BuildSite, Hall, Machine, Portfolio, Step, portfolio
from tenfold.plan.sites.staging import Aim, cvar, knowing, solve, staging
from tenfold.plan.sites.tree import Node, Tree, forecast_tree
from tenfold.plan.sites.walk import home_demand, read_answer, walk
from tenfold.spec.errors import TenfoldError
from tenfold.spec.forecasts import read_forecasts

EXACT = Aim(gap=0.0)
QUARTERS = (0.0, 2.0, 4.0, 6.0)
END = 8.0
LIFE = 4.0  # years of halls and machines
PARENTS = (None, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6)
LEAVES = (7, 8, 9, 10)
MW = st.integers(0, 20).map(float)


def tree_of(demands, up=0.5):
    """Two stages of news, and a stage after which nothing is learnt."""
    odds = (1.0, up, 1 - up, up, 1 - up, up, 1 - up, 1.0, 1.0, 1.0, 1.0)
    stages = (0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)
    return Tree(tuple(Node(str(i), PARENTS[i], odds[i], QUARTERS[stages[i]], (demands[i],)) for i in range(11)), ("chat",), END)


def site_of(name, mw, costs, running, ready=()):
    """Two phases of a stage each, one after the other; a sale brings back a half."""
    steps = tuple(Step(step, 2.0, usd, usd / 2, after) for step, usd, after in zip("ab", costs, ((), ("a",)), strict=True))
    return BuildSite(name, steps, dict.fromkeys(ready, 0.0), ((0.0, mw),), math.inf, 1.0, running, 0.0, 0.0, 0.0)


def portfolio_of(sites, rent=9.0, **other):
    machine = Machine("chip", 2.0, 4.0, LIFE, 1.0, 0.0, (1.0,))
    return Portfolio(sites, Hall(0.0, 2.0, LIFE), (machine,), (), (), rent, 0.0, 2.0, 0.0, **other)


SITES = st.tuples(
    st.builds(site_of, st.just("old"), st.integers(1, 20), st.just((0, 0)), st.integers(0, 3), st.just(("a", "b"))),
    st.builds(site_of, st.just("new"), st.integers(1, 20), st.tuples(st.integers(0, 40), st.integers(0, 40)), st.integers(0, 3)),
)
TREES = st.builds(tree_of, st.tuples(*[MW] * 11), st.sampled_from([0.2, 0.5, 0.7]))


def ancestors(n):
    return [] if n is None else [*ancestors(PARENTS[n]), n]


def cheapest(tree, sites, begun, rent):
    """The least expected cost where it is said which phases have begun by which node: each leaf has its own copy of what is
    built and ordered, and copies that share a node are held equal. What is left of their life at
    the end is worth its share of the price."""
    years, kept = 0.5, lambda ready: max(0.0, 1 - (END - ready) / 4 / LIFE)
    index = {key: i for i, key in enumerate(itertools.product(LEAVES, range(4), (0, 1), ("hall", "machine", "rent")))}
    cost, rows, limits, equal = np.zeros(len(index)), [], [], []
    for leaf in LEAVES:
        path = ancestors(leaf)
        weight = tree.probability(leaf)
        for stage, n in enumerate(path):
            quarter, row = QUARTERS[stage], np.zeros(len(index))
            for s, place in enumerate(sites):
                at = {what: index[leaf, stage, s, what] for what in ("hall", "machine", "rent")}
                cost[at["hall"]] = weight * 2.0 * (1 - kept(quarter))
                ready = quarter + 2
                runs = (END - ready) / 4 if ready < END else 0.0
                cost[at["machine"]] = weight * (4.0 * (1 - kept(min(ready, END))) + place.usd_m_per_mw_year * runs)
                cost[at["rent"]] = weight * years * rent / 2  # one half of the rent for each of two columns
                row[at["rent"]] = -0.5
                open_ = s == 0 or (stage > 0 and begun[path[stage - 1], 1])
                built = np.zeros(len(index))
                built[[index[leaf, m, s, "hall"] for m in range(stage + 1)]] = 1
                rows.append(built.copy())
                limits.append(place.grid_mw[0][1] if open_ else 0.0)
                powered = -built
                arrived = [index[leaf, m, s, "machine"] for m in range(stage)]
                powered[arrived] = 1
                row[arrived] = -1
                rows.append(powered)
                limits.append(0.0)
            rows.append(row)
            limits.append(-tree.nodes[n].hours[0])
            for other in LEAVES:
                if other > leaf and ancestors(other)[stage] == n:
                    for s, what in itertools.product((0, 1), ("hall", "machine")):
                        same = np.zeros(len(index))
                        same[index[leaf, stage, s, what]], same[index[other, stage, s, what]] = 1, -1
                        equal.append(same)
    found = linprog(cost, np.array(rows), limits, np.array(equal), np.zeros(len(equal)))
    phases = sum(
        tree.probability(n) * (begun[n, f] - (begun[PARENTS[n], f] if n else 0)) * sites[1].steps[f].usd_m / 2
        for n, f in itertools.product(range(7), (0, 1))
    )
    return found.fun + phases


def every_beginning():
    """Every choice of the nodes by which the two phases of the new site have begun, within the rules; nobody begins at the end."""
    inner = range(3)
    for first in itertools.product((0, 1), repeat=3):
        if any(first[n] < first[PARENTS[n]] for n in inner if n):
            continue
        for second in itertools.product((0, 1), repeat=7):
            a = np.array([*first, *(first[PARENTS[n]] for n in range(3, 7))])
            allowed = all(
                second[n] <= (a[PARENTS[n]] if n else 0) and (n == 0 or second[n] >= second[PARENTS[n]]) for n in range(7)
            )
            if allowed:
                yield np.stack([a, second], 1)


@settings(max_examples=3, deadline=None)
@given(TREES, SITES)
def test_the_optimum_is_that_of_exhaustive_search(tree, sites):
    best = min(cheapest(tree, sites, begun, 9.0) for begun in every_beginning())
    assert solve(portfolio_of(sites), tree, EXACT).mean_usd_m == pytest.approx(best, abs=1e-4)


@settings(max_examples=10, deadline=None)
@given(TREES, SITES)
def test_to_wait_for_news_and_to_know_more_never_cost_more(tree, sites):
    found = staging(portfolio_of(sites), tree, EXACT)
    assert found.value_usd_m >= -1e-5
    assert found.perfect_usd_m >= -1e-5
    assert found.regret_usd_m.min() >= -1e-5
    for n, node in enumerate(tree.nodes):
        served = found.staged.work[n].sum() + found.staged.rented[n].sum() + found.staged.short[n].sum()
        assert served >= node.hours[0] - 1e-6


@settings(max_examples=10, deadline=None)
@given(TREES, SITES, st.sampled_from([0.3, 1.0]))
def test_a_plan_for_the_worst_outcomes_has_no_worse_ones(tree, sites, share):
    p = portfolio_of(sites)
    careful, mean = solve(p, tree, Aim(share, 0.0)), solve(p, tree, EXACT)
    assert careful.cvar_usd_m <= mean.cvar_usd_m + 1e-5
    assert careful.mean_usd_m >= mean.mean_usd_m - 1e-5


def test_cvar_is_the_mean_of_the_worst():
    costs = np.random.default_rng(0).normal(size=1000)
    assert cvar(costs) == pytest.approx(np.sort(costs)[-50:].mean())
    assert cvar(np.array([1.0, 2.0]), np.array([0.99, 0.01])) == pytest.approx(1.2)


def test_the_value_of_staging_by_hand():
    """10 hours are needed in the last stage, if the first stage goes up: half the time. Phase b costs 8, of which a sale
    returns a half; halls and machines for 10 hours cost 20 and 40 for a life of 4 years, of which half a year is used.
    """
    tree = tree_of([0, 0, 0, 0, 0, 0, 0, 10, 10, 0, 0])
    site = site_of("new", 10, (0, 8), 0.0, ready=("a",))
    found = staging(portfolio_of((site,), rent=60.0), tree, EXACT)
    assert found.staged.mean_usd_m == pytest.approx(0.5 * (4 + 60 * 0.5 / LIFE))
    assert found.value_usd_m == pytest.approx(0.5 * (4 + 60 * 0.5 / LIFE))
    begun = [one.node for n in range(7) for one in found.staged.decisions(n) if one.what == "b"]
    assert begun in ([1], [3, 4])
    assert knowing(portfolio_of((site,), rent=60.0), tree)[-1] == pytest.approx(0)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 100))
def test_a_tree_keeps_the_mean_of_every_stage_and_its_probabilities(branches, seed):
    demand = read_demand()
    grown = forecast_tree(demand, today(demand), branches, samples=512, seed=seed)
    tree = grown.tree
    for stage, quarter in enumerate(demand.quarters):
        at = [n for n, node in enumerate(tree.nodes) if node.quarter == quarter]
        weights = np.array([tree.probability(n) for n in at])
        assert weights.sum() == pytest.approx(1)
        assert weights @ [tree.nodes[n].hours for n in at] == pytest.approx(grown.paths.hours[:, stage].mean(0))
    again = grown.given(np.ones(512))
    assert [node.probability for node in again.nodes] == pytest.approx([node.probability for node in tree.nodes])


def test_sampled_demand_is_what_its_file_says():
    demand = read_demand()
    paths = sample(demand, today(demand), demand.quarters, 20_000, 1)
    training, chat = demand.training, demand.growth["chat"]
    came = paths.pays[:, demand.quarters.index(10.0)]
    assert came.mean() == pytest.approx(training.pays[0], abs=0.01)
    assert np.all(paths.hours[~came, -1, 0] == paths.hours[0, 0, 0])
    stage = demand.quarters.index(4.0)
    assert np.median(paths.hours[:, stage, 1] / paths.hours[:, 0, 1]) == pytest.approx(chat.per_year[1], rel=0.02)


def test_limits_of_grid_water_rent_money_and_carbon_hold_and_are_named():
    sites, demand = read_sites(), with_fields(read_demand(), branches=(2, 1))
    sites = with_fields(sites, limits=with_fields(sites.limits, usd_per_year=8e9, tco2_per_year=4e6))
    asked = Question(portfolio(sites, demand), demand, Aim(gap=0.01))
    grown = asked.grown()
    document = answer(asked, grown, staging(asked.portfolio, grown.tree, asked.aim))
    limits = {one["name"]: one["largest_mw"] for one in document["sites"]}
    for node in document["nodes"]:
        assert all(mw <= limits[name] + 1e-4 for name, mw in node["running_mw"].items())
        assert node["tco2_per_year"] <= 4e6 * (1 + 1e-6)
        assert node["rented_hours"] <= sites.rent.most_hours_per_year / 1e6 * (1 + 1e-6)
        begun = sum(one["usd"] for one in node["begun"])
        later = [q for q in [*demand.quarters, demand.end_quarter] if q > node["quarter"]]
        assert begun <= 8e9 * (later[0] - node["quarter"]) / 4 * (1 + 1e-6)
    assert {"money", "clouds"} <= {one["limit"] for one in document["binds"]}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Tree((Node("now", None, 1, 0, (0,)), Node("a", 0, 0.5, 1, (1,))), ("c",), 2), "sum to 0.5"),
        (lambda: Tree((Node("now", None, 1, 0, (0,)), Node("a", 2, 1, 1, (1,))), ("c",), 2), "stands before it"),
        (lambda: Tree((Node("now", None, 1, 0, (-3,)),), ("c",), 2), "demand of"),
        (lambda: Tree((Node("now", None, 1, 0, (0,)), Node("a", 0, 1, 0, (1,))), ("c",), 2), "after its parent"),
        (lambda: Tree((), ("c",), 2), "root"),
    ],
)
def test_impossible_trees_are_refused_in_one_sentence(make, words):
    with pytest.raises(TenfoldError, match=words) as raised:
        make()
    assert str(raised.value).count(". ") == 0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('after = ["permit"]', 'after = ["shells"]', "shells"),
        ('after = ["permit"]', 'after = ["shell"]', "wait for one another"),
        ("begun = { land = 8 }", "begun = { land = 8, shell = 1 }", "begun 'shell' before 'permit'"),
        ("grid_mw = [[0, 1500]]", "grid_mw = [[0, 1500e6]]", "grid_mw"),
        ("grid_mw = [[0, 1500]]", "grid_mw = [[4, 1500]]", "begin at quarter 0"),
        ("quarters = [6, 10, 18]", "quarters = [6, 10]", "three numbers"),
        ("quarters = [6, 10, 18]", "quarters = [600, 1000, 1800]", "quarters"),
        ("quarters = [6, 10, 18]", "months = [6, 10, 18]", "months"),
        ("lost = 0.2", "lost = 20", "lost"),
        ("halls_mw = 300", "halls_mw = 30", "machines of more MW"),
        ("grid_mw = [[0, 400]", "grid_mw = [[0, 100]", "halls of 300 MW"),
        ('region = "OH"', 'region = "OI"', "OI"),
        ('kinds = ["ranking"]', 'kinds = ["rank"]', "no kind of demand"),
    ],
)
def test_a_damaged_site_file_is_refused_in_one_sentence(tmp_path, old, new, words):
    text = example_text("sites.toml")
    assert old in text
    (tmp_path / "sites.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(TenfoldError, match=words) as raised:
        Question(portfolio(read_sites(tmp_path / "sites.toml"), read_demand()), read_demand(), Aim())
    assert str(raised.value).count(". ") == 0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("pays = [0.8, 0.6]", "pays = [0.8, 1.6]", "pays"),
        ("quarters = [0, 2, 4", "quarters = [0, 4, 2", "begin at 0 and rise"),
        ("times = [7, 10, 13]", "times = [13, 10, 7]", "rise"),
        ("hours_per_year = 500e6", "hours_per_year = 0", "hours_per_year"),
    ],
)
def test_a_damaged_demand_file_is_refused_in_one_sentence(tmp_path, old, new, words):
    text = example_text("demand.toml")
    assert old in text
    (tmp_path / "demand.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(TenfoldError, match=words) as raised:
        read_demand(tmp_path / "demand.toml")
    assert str(raised.value).count(". ") == 0


def test_the_command_answers_for_a_file_and_writes_nothing(tmp_path, capsys):
    text = example_text("demand.toml").replace("[2, 1, 2, 2, 2, 2, 1]", "[2, 1]")
    text = text.replace("[0, 2, 4, 7, 10, 14, 18, 22]", "[0, 3, 8, 12, 16]").replace("end_quarter = 30", "end_quarter = 20")
    (tmp_path / "demand.toml").write_text(text)
    asked, home = commands.Asked(demand=tmp_path / "demand.toml"), tmp_path / "home"
    commands.sites(asked=asked, output=commands.SitesOutput(home=home, json=True))
    found = json.loads(capsys.readouterr().out)
    assert found["value_of_staging_usd"] > 0
    least = -0.002 * found["expected_usd"]  # plans are solved to a relative gap of 0.001
    assert found["value_of_perfect_information_usd"] - found["value_of_one_more_rung_usd"] >= least
    assert found["value_of_one_more_rung_usd"] >= least
    assert all(one["waiting_usd"] >= -0.001 * found["expected_usd"] for one in found["begin_now"])
    commands.sites(asked=asked, output=commands.SitesOutput(home=home))
    assert "value of staging" in capsys.readouterr().out
    assert [one.name for one in tmp_path.iterdir()] == ["demand.toml"]


def test_the_walk_plans_for_the_newest_plan_and_repeats_itself(tmp_path):
    power = {"peak_mw": {"mid": 110.0}, "pue": {"mid": 1.1}}
    (tmp_path / "plan.json").write_text(json.dumps({"schema": SCHEMA, "power": power}))
    said = []
    assert walk(tmp_path, said.append) == walk(tmp_path, said.append)
    assert len(said) == 2
    written = read_answer(tmp_path / "sites.json")
    demand, plan = home_demand(tmp_path, read_demand(), read_sites())
    assert written["nodes"][0]["hours"][0] == pytest.approx(demand.training.hours_per_year / 1e6)
    assert plan == tmp_path / "plan.json"
    (tmp_path / "rank").mkdir()
    (tmp_path / "rank" / "plan.json").write_text('{"request": {}}')  # a newer plan of serving is passed over
    assert home_demand(tmp_path, read_demand(), read_sites())[1] == plan
    (tmp_path / "rank" / "plan.json").write_text('{"schema"')
    with pytest.raises(TenfoldError, match="is damaged"):
        home_demand(tmp_path, read_demand(), read_sites())
    (made,) = read_forecasts(tmp_path)
    assert (made.forecast.kind, made.forecast.unit) == ("demand", "million hours/year")
    assert written["forecast"] == made.forecast.key
    (tmp_path / "rank" / "plan.json").unlink()
    own, text = tmp_path / "demand.toml", example_text("demand.toml").replace("[2, 1, 2, 2, 2, 2, 1]", "[2, 1]")
    for hours in ("800e6", "900e6"):  # another file of demand is another forecast
        own.write_text(text.replace("800e6", hours))
        walk(tmp_path, said.append, demand_file=str(own))
    assert len({one.forecast.key for one in read_forecasts(tmp_path)}) == 3
