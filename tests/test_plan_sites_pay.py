"""Whether sites pay, hourly profiles of a site, a ladder's chances, history, and where trees branch."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as with_fields
from scipy import stats

from bench.scale.ladders import TRUTHS, known_ladder
from bench.scale.limit import bent
from tenfold.plan.costs.cost import HOURS_PER_YEAR
from tenfold.plan.sites import commands
from tenfold.plan.sites.demand import TRAINING, State, read_demand, today
from tenfold.plan.sites.history import forecast_growth, history, known_at
from tenfold.plan.sites.inputs import Sold, example_text, read_sites, read_toml
from tenfold.plan.sites.ladder import read_ladder
from tenfold.plan.sites.pay import annuity, pay, payback, runway_months
from tenfold.plan.sites.portfolio import portfolio
from tenfold.plan.sites.staging import Aim, solve
from tenfold.plan.sites.tree import ahead, forecast_tree, grow, placed
from tenfold.scale.limit import ALARM
from tenfold.scale.points import NAMES
from tenfold.spec.errors import TenfoldError


@pytest.fixture(scope="module")
def demand():
    """Stages of a year, two of whose nodes branch."""
    return with_fields(read_demand(), quarters=(0.0, 4.0, 8.0, 12.0, 16.0), end_quarter=20.0, branches=(2, 2, 1))


@pytest.fixture(scope="module")
def plan(demand):
    """Nothing stands, nothing is discounted, and all that is begun takes a stage."""
    sites = with_fields(read_sites(), sites=tuple(with_fields(s, halls_mw=0, machines_mw={}) for s in read_sites().sites))
    p = replace(portfolio(sites, demand, lead=lambda figure, name: 4.0), discount=0.0)
    return solve(p, forecast_tree(demand, today(demand)).tree)


def test_without_revenue_a_plan_is_worth_what_it_costs(plan):
    """The programme counts the same payments, and what is short besides."""
    p, tree = plan.portfolio, plan.tree
    short = sum(
        tree.probability(n) * tree.years(n) * p.shortage_times * p.rent(node.quarter) * plan.short[n].sum()
        for n, node in enumerate(tree.nodes)
    )
    found = pay(plan, {"chat": Sold(0.0)}, None)
    for scenario in found["scenarios"]:
        assert scenario["value_usd"] == pytest.approx(-1e6 * (plan.mean_usd_m - short), rel=1e-6)
        assert scenario["payback_quarter"] is None and scenario["pays_probability"] == 0


def test_each_served_hour_earns(plan):
    sold = {"chat": Sold((1.0, 2.0, 4.0), 0.5)}
    nothing = pay(plan, {}, None)["scenarios"]
    tree = plan.tree
    chat = tree.kinds.index("chat")
    hours = sum(
        tree.probability(n) * tree.years(n) * (node.hours[chat] - plan.short[n, chat]) * 0.5 ** (node.quarter / 4)
        for n, node in enumerate(tree.nodes)
    )
    for usd, one, bare in zip((1.0, 2.0, 4.0), pay(plan, sold, None)["scenarios"], nothing, strict=True):
        assert one["value_usd"] - bare["value_usd"] == pytest.approx(1e6 * usd * hours)


def test_payback_and_runway_by_hand():
    assert payback(np.array([-10.0, -5.0, 5.0, 6.0]), [4, 8, 12, 16]) == 10.0
    assert payback(np.array([-10.0, 5.0, -1.0]), [4, 8, 12]) is None
    assert payback(np.array([1.0, 2.0]), [4, 8]) == 0.0
    assert runway_months(7.0, np.array([-7.0 * 2, -28.0]), [8, 16]) == pytest.approx(12)
    assert runway_months(7.0, np.array([-6.0, 1.0]), [4, 8]) is None


@given(st.floats(1, 100), st.integers(1, 30), st.integers(0, 30).map(lambda percent: percent / 100))
def test_yearly_payments_are_worth_the_price(price, years, rate):
    payment = annuity(price, years, rate)
    assert sum(payment * (1 + rate) ** -year for year in range(1, years + 1)) == pytest.approx(price)


def test_the_published_case_lasts_as_long_as_was_published(plan):
    known, found = read_toml(None, "published.toml")["case"], pay(plan, {}, None)["published_case"]
    assert found["runway_months_renting"] == pytest.approx(known["cash_months"])
    assert found["own_usd_per_year"] == pytest.approx(
        found["accelerators"] * HOURS_PER_YEAR * pay(plan, {}, None)["own"]["usd_per_hour"]
    )
    assert found["runway_months_owning"] >= 0


def profiles(folder, usd, grams):
    """A year whose hours are all alike, and a hot, humid one."""
    (folder / "prices.csv").write_text("Price (USD/MWh)\n" + f"{usd}\n" * 8760)
    (folder / "carbon.csv").write_text("avg_CI\n" + f"{grams}\n" * 8760)
    row = ["2023"] + ["1"] * 5 + ["30", "24", "60", "101325"] + ["0"] * 25
    (folder / "weather.epw").write_text((",".join(row) + "\n") * 8760)
    text = example_text("sites.toml").replace(
        'region = "TX"', 'region = "TX"\nprice_csv = "prices.csv"\ncarbon_csv = "carbon.csv"\nweather_epw = "weather.epw"'
    )
    (folder / "sites.toml").write_text(text)


def test_profiles_by_hour_take_the_place_of_the_states_figures(tmp_path, demand):
    profiles(tmp_path, 80, 400)
    sites = read_sites(tmp_path / "sites.toml")
    (tx,) = (place for place in portfolio(sites, demand).sites if place.name == "TX")
    assert tx.tco2 == pytest.approx(0.4 * tx.mwh)
    assert tx.usd_m_per_mw_year == pytest.approx((80 * tx.mwh + sites.usd_per_tco2 * tx.tco2 + sites.usd_per_m3 * tx.m3) / 1e6)
    dry = tuple(with_fields(one, cooling="closed") for one in sites.sites)
    assert portfolio(with_fields(sites, sites=dry), demand).sites[-1].m3 == 0
    assert tx.m3 > 0
    (tmp_path / "prices.csv").unlink()
    with pytest.raises(TenfoldError, match=r"prices\.csv"):
        portfolio(sites, demand)


def write_points(folder, bend):
    folder.mkdir(parents=True)
    points = bent(known_ladder(TRUTHS["Chinchilla"], 3)[0], bend)
    rows = [",".join(str(getattr(point, name)) for name in NAMES) for point in points]
    (folder / "points.csv").write_text("\n".join([",".join(NAMES), *rows]) + "\n")


def test_the_next_generations_are_weighed_by_the_ladders_limit(tmp_path):
    plain = read_demand()
    for name, bend in (("straight", 0.0), ("bent", 0.08)):
        write_points(tmp_path / name / "g1", bend)
    (straight, quiet), (bending, loud) = (read_ladder(tmp_path / name, plain) for name in ("straight", "bent"))
    assert quiet.bend_chance < plain.training.bends < loud.bend_chance
    for found, ladder in ((straight, quiet), (bending, loud)):
        assert found.training.pays == pytest.approx([p * (1 - ladder.bend_chance) for p in plain.training.pays])
        # The same by drawn worlds: the law bends or not, the generation pays or not, the rung raises an alarm or not.
        draw, n = np.random.default_rng(0).random((3, 400_000)), plain.training
        bends = draw[0] < ladder.bend_chance
        pays = ~bends & (draw[1] < n.pays[0])
        silent = draw[2] >= np.where(bends, ladder.power or 0.0, ALARM)
        rung = found.training.rung
        expected = (silent[pays].mean(), silent[~pays].mean()) if ladder.power is not None else (0.0, 0.0)
        assert (rung.sees, rung.false_alarms) == pytest.approx(expected, abs=0.005)
        assert found.growth == plain.growth
    with pytest.raises(TenfoldError, match="climb first"):
        read_ladder(tmp_path, plain)


def test_the_command_reads_a_ladder(tmp_path, capsys):
    write_points(tmp_path / "home" / "g1", 0.0)
    text = example_text("demand.toml").replace("[2, 1, 2, 2, 2, 2, 1]", "[2, 1]")
    text = text.replace("[0, 2, 4, 7, 10, 14, 18, 22]", "[0, 3, 8, 12]").replace("end_quarter = 30", "end_quarter = 16")
    (tmp_path / "demand.toml").write_text(text)
    home = tmp_path / "home"
    asked = commands.Asked(demand=tmp_path / "demand.toml", ladder=home)
    commands.sites(asked=asked, output=commands.SitesOutput(home=home, json=True))
    found = json.loads(capsys.readouterr().out)
    assert "A bend has a probability" in found["ladder"]
    assert found["pay"]["scenarios"][0]["value_usd"] <= found["pay"]["scenarios"][2]["value_usd"]


def test_a_ladder_of_training_without_a_kind_that_is_sold_is_refused(tmp_path):
    (tmp_path / "sites.toml").write_text(example_text("sites.toml").replace("[revenue.chat]", "[revenue.chatt]"))
    with pytest.raises(TenfoldError, match="chat"):
        commands.sites(tmp_path / "sites.toml", output=commands.SitesOutput(home=tmp_path))


def test_revenue_without_a_chip_for_all_kinds_is_refused(plan):
    chips = tuple(replace(m, hours=(0.0, *m.hours[1:])) for m in plan.portfolio.machines)
    with pytest.raises(TenfoldError, match="serves all kinds of demand"):
        pay(replace(plan, portfolio=replace(plan.portfolio, machines=chips)), {}, None)


def test_growth_is_forecast_from_the_years_before_alone():
    use = [100.0, 120.0, 150.0]
    logs = np.log([1.2, 1.25])
    expected = stats.t.interval(0.8, 1, logs.mean(), logs.std(ddof=1) * math.sqrt(1.5))
    low, mid, high = forecast_growth(use)
    assert (math.log(low), math.log(high)) == pytest.approx(expected)
    assert mid == pytest.approx(math.sqrt(1.5))


def test_a_decision_of_history_knows_nothing_of_later_years():
    file, table = read_sites(), read_toml(None, "history.toml")
    later = {**table, "years": [{**one, "mwh": one["mwh"] * (9 if one["year"] > 2022 else 1)} for one in table["years"]]}
    assert known_at(file, table, 2022) == known_at(file, later, 2022)
    assert known_at(file, table, 2023) != known_at(file, later, 2023)


def test_history_is_shown_beside_what_was_built():
    found = history(read_sites())
    assert {one["decided"] for one in found["decided"]} == {2021, 2022, 2023}
    assert {one["year"]: one["mwh"] for one in found["built"]}[2021] == 9_420_839
    for year in (2021, 2022, 2023):
        rows = {one["policy"]: one for one in found["decided"] if one["decided"] == year}
        assert set(rows) == {"staged", "just-in-time", "all-now"}
        assert all(one["usd"] > 0 and 0 <= one["short_share"] < 1 and one["until"] == 2024 for one in rows.values())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 64), st.sampled_from([0.0, 4.0, 10.0, 18.0, 22.0]))
def test_trees_branch_no_more_than_is_asked_and_where_generations_come(leaves, quarter):
    demand = read_demand()
    paths = ahead(demand, State(quarter, today(demand).hours), 512)
    branches = placed(paths, demand.end_quarter, leaves)
    assert math.prod(branches) <= leaves
    tree = grow(paths, demand, branches).tree if branches else None
    assert tree is None or len(tree.leaves) <= leaves
    if leaves >= 2 and quarter < 18:
        training = np.array([paths.hours[:, s, demand.kinds.index(TRAINING)].std() for s in range(len(paths.quarters))])
        news = 1 + int(np.argmax(np.diff(training)))
        assert branches[news - 1] == max(branches)


def test_a_plan_that_may_begin_later_phases_in_part_costs_no_more(demand):
    p, tree = portfolio(read_sites(), demand), forecast_tree(demand, today(demand)).tree
    whole, part = solve(p, tree, Aim(gap=1e-6)), solve(p, tree, Aim(gap=1e-6, later_in_part=True))
    assert part.mean_usd_m <= whole.mean_usd_m * (1 + 1e-5)
    assert set(np.unique(part.begun[0])) <= {0.0, 1.0}
