"""Back-tests of site policies, what-if questions, limits that leave no plan, the page and the spreadsheet."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as with_fields
from openpyxl import load_workbook

from tenfold.plan.ranges import Range
from tenfold.plan.sites.answer import Question
from tenfold.plan.sites.ask import ask
from tenfold.plan.sites.backtest import Span, World, backtest, served
from tenfold.plan.sites.changes import blame, changed, compared, irreducible, limits_of, possible, scaled
from tenfold.plan.sites.demand import read_demand, today
from tenfold.plan.sites.inputs import Futures, example_text, read_sites
from tenfold.plan.sites.leads import Leads
from tenfold.plan.sites.page import write
from tenfold.plan.sites.policies import View, pace, policies, published
from tenfold.plan.sites.portfolio import portfolio
from tenfold.plan.sites.staging import Aim, Begun, solve
from tenfold.plan.sites.tree import forecast_tree
from tenfold.spec.errors import TenfoldError

NONE = ([], Futures())
SMALL = {
    "[0, 2, 4, 7, 10, 14, 18, 22]": "[0, 3, 8, 12, 16]",
    "end_quarter = 30": "end_quarter = 20",
    "[2, 1, 2, 2, 2, 2, 1]": "[2, 1]",
}


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """The package's example of demand with five stages and two paths."""
    text, path = example_text("demand.toml"), tmp_path_factory.mktemp("demand") / "demand.toml"
    for old, new in SMALL.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def demand(small_file):
    return read_demand(small_file)


@pytest.fixture(scope="module")
def sites():
    found = read_sites()
    return with_fields(found, sites=tuple(place for place in found.sites if place.name != "LA-2"))


@pytest.fixture(scope="module")
def question(sites, demand):
    return Question(portfolio(sites, demand), demand, Aim())


def test_a_simulated_world_costs_what_the_programme_says(sites, demand):
    """Where all that is begun is ready as a stage begins, the simulation's own account of a plan is the programme's."""
    demand = with_fields(demand, quarters=(0.0, 4.0, 8.0, 12.0, 16.0))
    p = portfolio(sites, demand, lead=lambda figure, name: 4.0)
    tree = forecast_tree(demand, today(demand)).tree.mean()
    plan = solve(p, tree)
    world, spans = World(p, p, Leads.of(sites), tree.end), []
    for n, node in enumerate(tree.nodes):
        assert world.begin(plan.decisions(n), node.quarter) == []
    for n, node in enumerate(tree.nodes):
        end = node.quarter + 4 * tree.years(n)
        spans += [Span(world, node.quarter, *part, np.array(node.hours)) for part in world.spans(node.quarter, end)]
    usd, _ = served(spans)
    assert world.usd_m + usd.sum() == pytest.approx(plan.mean_usd_m, rel=1e-4)


def test_what_is_late_is_missing_for_as_long_as_it_is_late(sites, demand):
    p = portfolio(sites, demand)
    machine = p.machines[0]
    world = World(replace(p, halls_begun=()), p, Leads.of(sites), 20.0)
    world.begin([Begun(0, "OH", "halls", 100.0), Begun(0, "OH", machine.name, 100.0)], 0.0)
    ready = max(p.hall.lead, machine.lead)
    start, end = world.spans(0.0, 8.0)[-1]
    assert start == ready and end == 8.0
    for before, after in world.spans(0.0, 8.0):
        assert (world.capacity((before + after) / 2) == world.capacity(before)).all()
    there = world.capacity(ready)[0] - world.capacity(ready - 1e-6)[0]
    assert there > 0


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 12), st.floats(0.5, 12))
def test_what_is_waited_for_takes_longer_than_it_has_and_what_came_tells(waited, lead):
    leads = Leads.of(read_sites())
    planned = leads.expected("lead b200", [], 0.0)
    assert planned == Range.of(read_sites().chips["b200"].quarters, "lead b200").quantile(read_sites().lead_level)
    waiting = leads.expected("lead b200", [(0.0, math.inf)], waited)
    assert waiting > waited and waiting >= planned - 1e-9
    assert leads.expected("lead b200", [(2.0, 2.0 + lead), (4.0, math.inf)], 2.0 + lead) == pytest.approx(lead)


def test_nothing_begins_before_its_predecessors_and_lateness_is_not_known_in_advance(sites, question):
    p = question.portfolio
    slow = tuple(replace(place, steps=tuple(replace(s, lead=20.0) for s in place.steps)) for place in p.sites)
    world = World(replace(p, sites=slow), p, Leads.of(sites), 30.0)
    shell = Begun(0, "TX", "shell")
    assert world.begin([shell, Begun(0, "TX", "land"), Begun(0, "TX", "halls", 5.0)], 0.0) == [shell, Begun(0, "TX", "halls", 5.0)]
    planned = {step.name: step.lead for step in p.sites[-1].steps}["land"]
    assert world.view(0.0).sites[-1].ready == pytest.approx({"land": planned})
    assert world.view(10.0).sites[-1].ready["land"] > 10
    assert world.view(20.0).sites[-1].ready["land"] == 20


def test_policies_meet_the_same_futures_and_repeat_themselves(sites, demand):
    first = View(portfolio(sites, demand), today(demand), demand)
    chosen = policies(["just-in-time", "all-now"], first, 0.0)
    found, again = (backtest(sites, demand, chosen, Futures(2)) for _ in range(2))
    assert set(found) == {"staged", "just-in-time", "all-now"}
    for name, result in found.items():
        assert np.array_equal(result.usd_m, again[name].usd_m)
        assert result.cvar_usd_m >= result.mean_usd_m > 0
        assert np.all((result.short_share >= 0) & (result.short_share <= 1))
    with pytest.raises(TenfoldError, match="just-in-time"):
        policies(["just-in-tim"], first, 0.0)


def test_the_published_pace_fills_the_sites_whatever_the_demand(sites, demand):
    p = portfolio(sites, demand, lead=lambda figure, name: 1.0)
    world, paid = World(p, p, Leads.of(sites), demand.end_quarter), []
    for quarter in demand.quarters:
        view = View(world.view(quarter), replace(today(demand), quarter=quarter), demand)
        paid.append(pace(view))
        assert world.begin(published(view), quarter) == []
    assert sum(paid) == pytest.approx(1)
    for place in p.sites:
        built = place.halls_mw + sum(mw for site, mw, *_ in world.halls if site == place.name)
        assert built <= place.largest_mw + 1e-6
    assert sum(mw for _, mw, *_ in world.halls) > 0.5 * sum(place.largest_mw - place.halls_mw for place in p.sites)


@pytest.mark.parametrize("change", ["price.b200 x1.2", "rent x0.9", "water.OH x0.5", "lead x1.5", "grid.LA-1 delayed 6 quarters"])
def test_a_change_costs_at_least_what_a_worse_world_must(question, change):
    before = solve(question.portfolio, question.grown().tree)
    found = compared(question, change, before)
    worse = change != "rent x0.9"
    assert (found.usd_m >= before.objective(question.aim) * (1 - 2e-3)) == worse
    assert found.keeping_usd_m is None or found.keeping_usd_m >= 0


def test_changes_name_what_there_is(question):
    twice = changed(question, "demand.chat x2").demand.growth
    assert twice["chat"].hours_per_year == 2 * question.demand.growth["chat"].hours_per_year
    assert twice["ranking"] == question.demand.growth["ranking"]
    for text, words in (
        ("grid.TXX x2", "TX"),
        ("grids.TX x2", "grid"),
        ("grid.TX soon", "not understood"),
        ("grid.TX x1.2.3", "not understood"),
        ("grid x2", "lacks a name"),
        ("price x2", "lacks a name"),
        ("grid delayed 4 quarters", "lacks a name"),
        ("money x2", "no limit"),
    ):
        with pytest.raises(TenfoldError, match=words):
            changed(question, text)


def test_limits_that_leave_no_plan_are_irreducible(question):
    """The limits that are named leave no plan, even with every other one twenty times as wide; without any of them there is one."""
    tree = question.grown().tree
    p = replace(question.portfolio, all_served=True, most_usd_m=8e3)
    found = irreducible(p, tree)
    assert found
    wide = p
    for name in set(limits_of(p)) - set(found):
        wide = scaled(wide, name, 20.0)
    assert not possible(wide, tree)
    for name, factor in found.items():
        assert possible(scaled(wide, name, 20.0), tree)
        assert name in blame(p, tree)
        if factor is not None:
            assert possible(scaled(p, name, factor), tree)
            assert not possible(scaled(p, name, factor * 0.98), tree)


def test_the_page_and_the_spreadsheet_say_what_the_json_says(tmp_path, small_file):
    document = ask(None, (small_file, None), tmp_path, ["price.h100 x1.01"], NONE)
    write(document, tmp_path / "sites.html")
    page = (tmp_path / "sites.html").read_text()
    assert document["what_if"][0]["sentence"] in page
    assert "<svg" in page
    assert not re.search(r'(src|href)="?http', page)
    assert json.loads((tmp_path / "sites.json").read_text())["expected_usd"] == document["expected_usd"]
    book = load_workbook(tmp_path / "sites.xlsx")
    values = {row[0].value: row[1].value for row in book["answer"].iter_rows()}
    assert values["expected cost"] == pytest.approx(document["expected_usd"])
    assert book["nodes"].max_row == len(document["nodes"]) + 1


def test_a_question_without_a_plan_is_refused_with_the_limits_that_bind(tmp_path, small_file):
    text = example_text("sites.toml")
    (tmp_path / "sites.toml").write_text(text.replace("[rent]", "[limits]\nall_served = true\nusd_per_year = 8e9\n\n[rent]"))
    with pytest.raises(TenfoldError, match="bind together: .* would do"):
        ask(tmp_path / "sites.toml", (small_file, None), tmp_path, [], NONE)


def test_one_percent_of_an_input_changes_nothing_or_is_explained(question):
    before = solve(question.portfolio, question.grown().tree, replace(question.aim, gap=1e-4))
    for change in ("price.b200 x1.01", "rent x1.01", "demand x1.01", "lead x1.01"):
        found = compared(question, change, before)
        assert found.unchanged or found.keeping_usd_m < 0.01 * found.usd_m


def test_trees_from_a_later_state_begin_there(demand):
    state = today(demand)
    later = replace(state, quarter=8.0, generation=1)
    tree = forecast_tree(demand, later, (2, 1), samples=64).tree
    assert tree.nodes[0].quarter == 8.0
    assert tree.nodes[0].hours == state.hours
