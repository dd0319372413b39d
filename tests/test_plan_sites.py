"""Staged sites: the optimum beside exhaustive search, the value of staging by hand, limits, sentences, the command."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from tenfold.plan.document import SCHEMA
from tenfold.plan.sites import commands
from tenfold.plan.sites.example import demand_tree, example_sites, unmet_usd
from tenfold.plan.sites.staging import BuildSite, solve, staging
from tenfold.plan.sites.tree import Node, Tree
from tenfold.plan.sites.walk import read_sites, walk
from tenfold.spec.errors import TenfoldError
from tenfold.spec.forecasts import read_forecasts

M = 1e6
PARENTS = (None, 0, 0, 1, 1, 2, 2)
MW = st.integers(0, 20).map(float)


def tree_of(demands, up=0.5):
    odds = (1.0, up, 1 - up, up, 1 - up, up, 1 - up)
    return Tree(tuple(Node(str(i), PARENTS[i], odds[i], demands[i]) for i in range(7)))


def site_of(name, power, begin, per_mw, **other):
    return BuildSite(name, power, 1.0, 1e9, 1.0, begin * M, per_mw * M, 1 * M, **other)


SITES = st.tuples(
    st.builds(site_of, st.just("a"), st.integers(1, 20), st.integers(0, 30), st.integers(0, 8)),
    st.builds(site_of, st.just("b"), st.integers(1, 20), st.integers(0, 30), st.integers(0, 8)),
)
TREES = st.builds(tree_of, st.tuples(*[MW] * 7), st.sampled_from([0.2, 0.5, 0.7]))


def exhaustive(tree, sites, penalty):
    """The least expected cost in millions over every choice of what the root and its children begin; the rest is linear."""
    weight = [1.0] + [tree.nodes[n].probability for n in (1, 2)]
    weight += [weight[PARENTS[n]] * tree.nodes[n].probability for n in range(3, 7)]
    served = [(n, s) for n in range(1, 7) for s in (0, 1)]  # columns after the six of what is built
    cost = [weight[n] * sites[s].usd_per_mw / M for n in range(3) for s in (0, 1)]
    cost += [weight[n] * (sites[s].usd_per_mw_stage - penalty) / M for n, s in served]
    base = sum(weight[n] * tree.nodes[n].demand_mw * penalty / M for n in range(7))
    rows, limits = [], []
    for i, (n, s) in enumerate(served):
        row = np.zeros(len(cost))
        row[6 + i] = 1
        row[[s] if n < 3 else [s, 2 * PARENTS[n] + s]] = -1
        rows.append(row)
        limits.append(0)
    for n in range(1, 7):
        rows.append(np.isin(np.arange(len(cost)), [6 + i for i, (m, _) in enumerate(served) if m == n]).astype(float))
        limits.append(tree.nodes[n].demand_mw)
    for child, s in itertools.product((1, 2), (0, 1)):
        rows.append(np.isin(np.arange(len(cost)), [s, 2 * child + s]).astype(float))
        limits.append(sites[s].limit_mw)
    best = np.inf
    for begun in itertools.product((0, 1), repeat=6):
        fixed = sum(b * weight[i // 2] * sites[i % 2].begin_usd / M for i, b in enumerate(begun))
        bounds = [(0, b * sites[i % 2].limit_mw) for i, b in enumerate(begun)] + [(0, None)] * len(served)
        best = min(best, base + fixed + linprog(cost, np.array(rows), limits, bounds=bounds).fun)
    return best


@settings(max_examples=6, deadline=None)
@given(TREES, SITES)
def test_the_optimum_is_that_of_exhaustive_search(tree, sites):
    assert solve(tree, sites, 9 * M).expected_usd / M == pytest.approx(exhaustive(tree, sites, 9 * M), abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(TREES, SITES)
def test_to_wait_for_news_never_costs_more_and_limits_hold(tree, sites):
    found = staging(tree, sites, 9 * M)
    assert found.value_usd >= -1
    assert found.stochastic_usd >= -1
    for n, node in enumerate(tree.nodes):
        running = found.staged.running_mw[n]
        assert all(running[site.name] <= site.power_mw + 1e-6 for site in sites)
        assert sum(running.values()) + found.staged.unmet_mw[n] >= node.demand_mw - 1e-6


def test_the_value_of_staging_by_hand():
    """10 MW are needed two stages on, if the first stage goes up. Waiting: half of 2 + 10 M$. At the root: 12 M$ in any case.

    A plan for the mean demand of 5 MW pays 2 + 5 M$ and, half the time, 5 M$ for each of 5 MW that it lacks: 19.5 M$.
    """
    tree = Tree(
        (Node("now", None, 1, 0), Node("up", 0, 0.5, 0), Node("down", 0, 0.5, 0), Node("need", 1, 1, 10), Node("none", 2, 1, 0))
    )
    site = BuildSite("only", 10, 1.0, 100, 1.0, 2 * M, 1 * M, 0.0)
    found = staging(tree, [site], 5 * M)
    assert found.staged.expected_usd == pytest.approx(6 * M)
    assert found.value_usd == pytest.approx(6 * M)
    assert found.stochastic_usd == pytest.approx(7.5 * M)
    assert found.staged.now(tree) == ()
    assert [(b.node, b.mw) for b in found.staged.begun] == [("up", pytest.approx(10))]


@pytest.mark.parametrize(("water", "power", "limit"), [(30.0, 100.0, 15.0), (1000.0, 24.0, 20.0)])
def test_water_and_grid_bind(water, power, limit):
    site = BuildSite("only", power, 1.2, water, 2.0, 0.0, 1 * M, 0.0)
    found = solve(tree_of([50.0] * 7), [site], 9 * M)
    assert max(row["only"] for row in found.running_mw) == pytest.approx(limit)
    assert found.unmet_mw[1] == pytest.approx(50 - limit)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Tree((Node("now", None, 1, 0), Node("a", 0, 0.5, 1))), "sum to 0.5"),
        (lambda: Tree((Node("now", None, 1, 0), Node("a", 2, 1, 1), Node("b", 0, 1, 1))), "stands before it"),
        (lambda: Tree((Node("now", None, 1, -3),)), "demand of -3 MW"),
        (lambda: Tree(()), "root"),
        (lambda: site_of("a", -1, 0, 0), "limits and costs"),
        (lambda: site_of("a", 1, 0, 0, lead_stages=0), "lead of 1"),
        (lambda: solve(tree_of([0.0] * 7), [], M), "at least one site"),
    ],
)
def test_impossible_input_is_refused_in_one_sentence(make, words):
    with pytest.raises(TenfoldError, match=words) as raised:
        make()
    assert str(raised.value).count(". ") == 0


def test_the_command_prints_what_the_solver_finds(tmp_path, capsys):
    commands.sites(home=tmp_path, json=True)
    found = json.loads(capsys.readouterr().out)
    again = staging(demand_tree(), example_sites(), unmet_usd())
    assert found["expected_usd"] == pytest.approx(again.staged.expected_usd)
    assert found["value_of_staging_usd"] == pytest.approx(again.value_usd)
    assert found["value_of_staging_usd"] > 0
    assert len(found["nodes"]) == 7
    assert not list(tmp_path.iterdir())


def test_the_walk_plans_for_the_newest_plan_and_repeats_itself(tmp_path):
    power = {"peak_mw": {"mid": 11.0}, "pue": {"mid": 1.1}}
    (tmp_path / "plan.json").write_text(json.dumps({"schema": SCHEMA, "power": power}))
    said = []
    assert walk(tmp_path, said.append) == walk(tmp_path, said.append)
    assert len(said) == 2
    written = read_sites(tmp_path / "sites.json")
    assert [node["demand_mw"] for node in written["nodes"]] == pytest.approx([0, 10, 30, 10, 30, 30, 90])
    (made,) = read_forecasts(tmp_path)
    assert (made.forecast.kind, made.forecast.unit) == ("demand", "MW")
    assert made.forecast.quantiles == pytest.approx((10, 10, 10, 30, 30, 30, 30))
    assert written["forecast"] == made.forecast.key
