"""Off-policy estimates on bandits whose values are known, on tables, and on a served log; interleaving and A/B."""

import json
import shutil

import numpy as np
import pytest

from bench.rank.made import made_ranker
from bench.rank.offpolicy import Bandit
from tenfold.cli.commands import run
from tenfold.rank.events.store import Events
from tenfold.rank.experiment import Verdict, arm, interleave, interleaved, split, verdicts
from tenfold.rank.offpolicy.estimators import Rows, estimates
from tenfold.rank.offpolicy.log import read_log, rows_of, table_policy, uniform
from tenfold.rank.offpolicy.served import served_log
from tenfold.rank.ranker import History
from tenfold.rank.serving.recommender import Query, Recommender
from tenfold.rank.serving.settings import RankSettings
from tenfold.spec.errors import TenfoldError


def test_intervals_cover_the_known_value_of_a_bandit_and_dr_errs_no_more_than_snips():
    bandit, rng, worlds = Bandit(seed=0), np.random.default_rng(1), 200
    truth = bandit.value(200_000, rng)
    found = [estimates(rows_of(*bandit.logged(1500, rng))) for _ in range(worlds)]
    error = {}
    for name in ("ips", "snips", "dr"):
        covered = np.mean([one[name].low <= truth <= one[name].high for one in found])
        assert 0.90 < covered < 0.99, (name, covered)  # within three standard errors of 95 %
        error[name] = np.sqrt(np.mean([(one[name].value - truth) ** 2 for one in found]))
    assert (
        error["dr"] <= error["snips"] and abs(np.mean([one["dr"].value for one in found]) - truth) < 3 * error["dr"] / worlds**0.5
    )


def test_estimates_are_the_textbook_sums_and_rows_of_one_user_count_as_one():
    rng = np.random.default_rng(0)
    reward, weight, group = rng.random(400), rng.exponential(size=400), np.repeat(np.arange(100), 4)
    found = estimates(Rows(reward, weight, group, 0.5 * np.ones(400), 0.25 * np.ones(400)))
    assert found["ips"].value == pytest.approx((weight * reward).mean())
    assert found["snips"].value == pytest.approx((weight * reward).sum() / weight.sum())
    assert found["dr"].value == pytest.approx((0.25 + weight * (reward - 0.5)).mean())
    assert found["logged"].value == pytest.approx(reward.mean())
    copies = Rows(*(np.tile(column, 3) for column in (reward, weight, group)))
    assert estimates(copies)["ips"] == pytest.approx(estimates(Rows(reward, weight, group))["ips"])


@pytest.fixture
def table(tmp_path):
    """A log of 600 rows in Open Bandit's form: item a earns 0.6 at place 1, b 0.2, c 0."""
    rng = np.random.default_rng(0)
    items = rng.choice(3, 600, p=[0.2, 0.3, 0.5])
    clicks = rng.random(600) < np.array([0.6, 0.2, 0.0])[items]
    rows = [f"{'abc'[i]},{1 + n % 2},{int(c)},{[0.2, 0.3, 0.5][i]}" for n, (i, c) in enumerate(zip(items, clicks, strict=True))]
    (tmp_path / "log.csv").write_text("item_id,position,click,propensity_score\n" + "\n".join(rows))
    return tmp_path


def test_a_table_says_what_the_uniform_and_another_policy_would_have_earned(table, capsys):
    chances = "".join(f"{item},{place},{p}\n" for place in (1, 2) for item, p in (("a", 0.5), ("b", 0.5)))
    (table / "policy.csv").write_text("item,position,probability\n" + chances)
    for policy, value in (("uniform", 0.8 / 3), (str(table / "policy.csv"), 0.4)):
        run(["rank", "offpolicy", str(table / "log.csv"), "--policy", policy, "--json"])
        found = json.loads(capsys.readouterr().out)
        for name in ("ips", "snips", "dr"):
            assert found[name]["low"] < value < found[name]["high"] and found[name]["high"] - found[name]["low"] < 0.2
    run(["rank", "offpolicy", str(table / "log.csv"), "--policy", "uniform"])
    assert "600 shown places" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("item,position,click\na,1,0\n", "no column 'propensity'"),
        ("item,position,click,propensity\n", "no rows"),
        ("item,position,click,propensity\na,1,0,0\n", "no probabilities"),
        ("item,position,click,propensity\na,1,0,1.5\n", "no probabilities"),
        ("item,position,click,propensity\na,1,maybe,0.5\n", "no numbers"),
        ("item,position,click,propensity\na,1,1,0.5\n", "at least 30"),
    ],
)
def test_a_table_that_allows_no_estimate_is_said(tmp_path, text, said):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(TenfoldError, match=said):
        log = read_log(tmp_path / "t.csv")
        estimates(rows_of(log, uniform(log)))


@pytest.mark.parametrize(
    ("rows", "said"), [("a,1,0.5\n", "add up to 1"), ("z,1,1\n", "never did"), ("a,9,1\na,8,1\na,7,1\n", "never")]
)
def test_a_policy_that_the_log_cannot_judge_is_said(table, rows, said):
    (table / "p.csv").write_text(f"item,position,probability\n{rows}")
    with pytest.raises(TenfoldError, match=said):
        table_policy(read_log(table / "log.csv"), table / "p.csv")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A store of 400 lists of a ranker that explores, whose users take one item in two, and the ranker."""
    folder = tmp_path_factory.mktemp("served")
    made_ranker(folder / "r", 30, 16, 10)
    of, rng = Recommender.load(folder / "r", RankSettings(explore=0.5)), np.random.default_rng(0)
    store = Events(f"sqlite:///{folder / 'events.db'}")
    for n in range(400):
        names = [f"item-{i}" for i in rng.choice(30, 3, replace=False)]
        query = Query(History(tuple(of.ranker.tokens(names))), 4, left_out=frozenset(of.ranker.tokens(names)))
        (made,) = of.answer([query], rng)
        items = [of.ranker.names[token] for token in made.tokens]
        rules = {"where": {}, "boost": {}, "at_most": {}, "diversity": 0.0}
        shown = {
            "items": items,
            "propensities": made.propensities,
            "scores": made.scores,
            "k": 4,
            "rules": rules,
            "objectives": {},
            "exclude": [],
        }
        store.keep_list(
            f"list-{n}",
            f"user-{n % 50}",
            {**shown, "repeat": False, "candidates": None, "history": names, "times": None, "now": None},
        )
        good = [{"id": f"{n}-{item}", "time": 1.0 * n, "item": item, "action": "click", "list_id": f"list-{n}"} for item in items]
        store.keep_events(f"user-{n % 50}", [row for row in good if int(row["item"][5:]) % 2])
    store.close()
    return folder


def test_the_policy_that_made_a_log_weighs_one_everywhere(served, capsys):
    log, policy, _ = served_log(
        Events.open(str(served / "events.db")), Recommender.load(served / "r", RankSettings(explore=0.5)), 400
    )
    rows = rows_of(log, policy)
    assert len(rows.weight) == 1600 and rows.weight == pytest.approx(1)
    assert log.reward.tolist() == [float(int(log.items[i][5:]) % 2) for i in log.item]
    run(["rank", "offpolicy", str(served / "events.db"), "--policy", str(served / "r"), "--explore", "0.5", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["ips"]["value"] == pytest.approx(found["logged"]["value"]) and found["effective_rows"] == pytest.approx(1600)


def test_a_policy_that_draws_evenly_is_estimated_from_one_that_does_not(served):
    log, policy, _ = served_log(
        Events.open(str(served / "events.db")), Recommender.load(served / "r", RankSettings(explore=1.0)), 400
    )
    found = estimates(rows_of(log, policy))
    assert all(found[name].low < 0.5 < found[name].high for name in ("ips", "snips", "dr"))


def test_a_newer_list_is_read_first_and_a_store_without_lists_is_said(served, tmp_path):
    log, _, _ = served_log(Events.open(str(served / "events.db")), Recommender.load(served / "r"), 10)
    assert len(log.item) == 40
    Events(f"sqlite:///{tmp_path / 'empty.db'}").close()
    with pytest.raises(TenfoldError, match="no list"):
        served_log(Events.open(str(tmp_path / "empty.db")), Recommender.load(served / "r"), 10)
    with pytest.raises(TenfoldError, match="no events in"):
        Events.open(str(tmp_path / "nothing.db"))


def test_lists_of_users_who_were_not_named_are_not_judged(served, tmp_path):
    shutil.copy(served / "events.db", tmp_path / "events.db")
    of, store = Recommender.load(served / "r", RankSettings(explore=0.5)), Events.open(str(tmp_path / "events.db"))
    before = served_log(store, of, 800)[0]
    for kept in [store.keep_list(f"nobody-{row.id}", "anonymous", row.shown) for row in list(store.of_lists())]:
        kept.result()
    log, _, left_out = served_log(store, of, 800)
    assert sorted(log.group) == sorted(before.group) and left_out["of users who were not named"] == 400
    with pytest.raises(TenfoldError, match="no list of a named user"):
        served_log(store, of, 400)  # the newest are of nobody


def test_interleaving_is_fair_to_equals_and_takes_the_best_of_both():
    rng = np.random.default_rng(0)
    same = [interleave("abcdef", "abcdef", 4, rng) for _ in range(2000)]
    assert all("".join(items) == "abcd" and abs(sum(teams[:2]) - 1) == 0 for items, teams in same)
    assert abs(np.mean([teams[0] for _, teams in same]) - 0.5) < 0.05
    for _ in range(50):
        items, teams = interleave("abc", "xay", 6, rng)
        assert set(items) == set("abcxy") and set(items[:2]) in ({"a", "x"}, {"a", "b"}, {"x", "a"})
        assert all(item in ("abc", "xay")[team] for item, team in zip(items, teams, strict=True))
    assert interleave("ab", "", 5, rng) == (["a", "b"], [0, 0])


def test_the_better_of_two_wins_and_equals_are_rarely_told_apart():
    def shown(n, rng):
        lists, taken = [], set()
        for i in range(n):
            items, teams = interleave("abcdef", "uvwxyz", 6, rng)
            lists.append({"id": str(i), "user_hash": str(i), "model": "old|new", "items": items, "teams": teams})
            taken |= {(str(i), item) for item in items if rng.random() < quality["abcdef".find(item) < 0]}
        return interleaved(lists, taken)[0]

    rng, quality = np.random.default_rng(0), (0.1, 0.3)
    better = shown(300, rng)
    assert better.models == ("old", "new") and better.wins[1] > better.wins[0] and better.p < 0.01 and better.rate[1] > 0.5
    quality = (0.2, 0.2)
    assert sum(shown(100, rng).p < 0.05 for _ in range(40)) <= 5


def test_a_user_of_many_interleaved_lists_counts_once():
    """Eight users take items of the old ranker alone, four of the new one alone, each from twenty lists."""
    lists, taken, rng = [], set(), np.random.default_rng(0)
    for user in range(12):
        for n in range(20):
            name, (items, teams) = f"{user}-{n}", interleave("abcdef", "uvwxyz", 6, rng)
            lists.append({"id": name, "user_hash": str(user), "model": "old|new", "items": items, "teams": teams})
            taken |= {(name, item) for item, team in zip(items, teams, strict=True) if team == (user >= 8) and rng.random() < 0.3}
    (found,) = interleaved(lists, taken)
    assert found.wins == (8, 4) and found.ties == 0 and found.p > 0.05  # by lists it would be some 150 to 75


def test_lists_of_users_who_were_not_named_count_in_no_experiment(tmp_path):
    store = Events(f"sqlite:///{tmp_path / 'events.db'}")
    shown = {"ab": {"model": "new", "items": ["a"], "arms": ["old", "new"]}}
    shown["interleave"] = {"model": "old|new", "items": ["a", "b"], "teams": [1, 0]}
    for user in ("anonymous", "ann"):
        for kind, one in shown.items():
            for n in range(2):
                name = f"{user}-{kind}-{n}"
                store.keep_list(name, user, one).result()
                store.keep_events(user, [{"id": name, "time": 1.0, "item": "a", "action": "click", "list_id": name}]).result()
    found = verdicts(store)
    assert [sum(one.wins) + one.ties for one in (*found["ab"], *found["interleave"])] == [1, 1]  # ann
    store.delete_user("ann")
    assert verdicts(store) == {"ab": [], "interleave": []}


def test_users_are_divided_evenly_and_count_once():
    hashes = [f"{i * 2654435761 % 2**32:08x}" for i in range(1000)]
    lists = [
        {"id": f"{h}-{n}", "user_hash": h, "model": "x", "items": ["a"], "arms": ["old", "new"]} for h in hashes for n in range(3)
    ]
    taken = {(one["id"], "a") for one in lists if arm(one["user_hash"])}  # of every list of the second arm
    (found,) = split(lists, taken)
    assert abs(sum(map(arm, hashes)) - 500) < 60
    assert (
        isinstance(found, Verdict)
        and found.wins == (0, sum(map(arm, hashes)))
        and found.ties == 1000 - found.wins[1]
        and found.p < 1e-6
    )
