"""The limit test against known distributions, and on ladders of known truths with and without a bend."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bench.scale.ladders import TRUTHS, known_ladder, ladders
from bench.scale.limit import bent
from tenfold.cli.commands import run
from tenfold.scale.bends import Bends
from tenfold.scale.limit import ALARM, limit_test
from tenfold.scale.next_rung import cheapest, next_rungs
from tenfold.scale.points import NAMES, Point
from tenfold.spec.errors import TenfoldError

BEND = 0.03
TABLES = ladders(None)


def exact(truth, bend=0.0):
    """The ladder of a truth without noise."""
    return bent([replace(p, loss=TRUTHS[truth](p.params, p.tokens)) for p in known_ladder(TRUTHS[truth], 0)[0]], bend)


@pytest.fixture
def one_place():
    """Bends at one place, whose cosine with noise has a distribution that is known."""
    rng = np.random.default_rng(3)
    x = np.repeat(np.arange(6.0), 3)
    bends = Bends.of(np.stack([np.ones(18), x, rng.standard_normal(18)], -1), np.ones(18), x)
    return replace(bends, breaks=bends.breaks[10:11])


def test_the_threshold_at_one_place_is_students(one_place):
    free = one_place.basis.shape[1] - 1
    assert free == 14
    t = stats.t.ppf(1 - ALARM, free)
    assert np.quantile(one_place.noise_cosines, 1 - ALARM) == pytest.approx(t / math.sqrt(free + t**2), abs=0.015)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_the_power_at_one_place_is_the_noncentral_ts(one_place, ratio):
    free, place = one_place.basis.shape[1] - 1, one_place.breaks[0]
    shift = ratio * np.linalg.norm(one_place.beyond(place))
    expected = stats.nct.sf(stats.t.ppf(1 - ALARM, free), free, shift)
    assert one_place.power(place, ALARM)(ratio) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("count", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_alarms_come_as_often_as_is_stated(count):
    alarms: dict[float, list[bool]] = {0.0: [], BEND: []}
    stated = []
    for i, (truth, bend) in enumerate((t, b) for t in TRUTHS for b in alarms):
        for seed in range(i * count, (i + 1) * count):
            found = limit_test(bent(known_ladder(TRUTHS[truth], 10_000 + seed)[0], bend), asked=BEND)
            alarms[bend].append(found.alarm)
            if not bend:
                stated.append(found.power)
    for bend, level in ((0.0, ALARM), (BEND, float(np.mean(stated)))):
        found = stats.binomtest(sum(alarms[bend]), len(alarms[bend]), level)
        assert found.pvalue > 0.001, (bend, level, np.mean(alarms[bend]))


@pytest.mark.parametrize("truth", TRUTHS)
def test_a_bend_without_noise_is_found_where_it_begins(truth):
    points = exact(truth, 0.05)
    found = limit_test(points)
    start = max(p.flops for p in points) / 10
    assert found.alarm and found.p_misfit <= ALARM
    assert found.bend.size == pytest.approx(0.05, abs=0.02)
    assert found.bend.begins == pytest.approx(start, rel=0.7)


def test_a_floor_that_the_law_follows_is_no_bend():
    rng = np.random.default_rng(5)
    points = [replace(p, loss=(p.loss + 0.5) * math.exp(0.003 * rng.standard_normal())) for p in exact("Chinchilla")]
    found = limit_test(points)
    assert found.p > 0.1 and not found.alarm


@pytest.mark.parametrize("table", ["chinchilla-figure 4", "olmo-c4", "gadre-c4"])
def test_published_ladders_show_no_limit(table):
    found = limit_test(TABLES[table])
    assert found.p_misfit > ALARM and found.verdict != limit_test(exact("Chinchilla", 0.08)).verdict


@pytest.mark.parametrize("what", NAMES)
def test_units_change_nothing(what):
    points, _ = known_ladder(TRUTHS["Besiroglu"], 7)
    one, other = (limit_test(p) for p in (points, [replace(p, **{what: 1e3 * getattr(p, what)}) for p in points]))
    assert other.p == pytest.approx(one.p, abs=0.01) and other.power == pytest.approx(one.power, abs=0.01)
    assert other.bend.size == pytest.approx(one.bend.size, abs=2e-4)


def test_more_runs_show_more_and_the_cheapest_shows_enough():
    points, _ = known_ladder(TRUTHS["steep"], 1)
    rungs = next_rungs(points, bend=BEND, noise=0.004)
    for flops in {r.flops for r in rungs}:
        powers = [r.power for r in sorted(rungs, key=lambda r: r.runs) if r.flops == flops]
        assert all(after >= before - 0.02 for before, after in itertools.pairwise(powers))
    best = cheapest(rungs)
    assert best is not None and best.power >= 0.8
    assert all(r.power < 0.8 for r in rungs if r.cost < best.cost)
    assert cheapest(next_rungs(points, bend=0.001, noise=0.02)) is None


@pytest.mark.slow
def test_the_next_rung_shows_a_bend_as_often_as_is_stated():
    alarms, stated = [], []
    for seed in range(60):
        truth = TRUTHS["Chinchilla"]
        points, _ = known_ladder(truth, 20_000 + seed)
        rung = next(r for r in next_rungs(points, bend=BEND, noise=0.004) if r.runs == 2 and r.flops < 1e21)
        rng = np.random.default_rng(seed)
        more = math.log10(rung.flops / max(p.flops for p in points))
        loss = truth(rung.params, rung.tokens) * (1 + BEND) ** more
        new = [Point(rung.params, rung.tokens, rung.flops, loss * math.exp(0.004 * rng.standard_normal())) for _ in range(2)]
        alarms.append(limit_test([*points, *new]).alarm)
        stated.append(rung.power)
    assert stats.binomtest(sum(alarms), len(alarms), float(np.mean(stated))).pvalue > 0.001


def test_points_that_can_show_no_bend_are_refused():
    points, _ = known_ladder(TRUTHS["Chinchilla"], 0)
    with pytest.raises(TenfoldError, match="at least 8"):
        limit_test(points[:4] + points[-3:])
    with pytest.raises(TenfoldError, match="three or more"):
        limit_test(points[:5] + points[-5:])


def test_a_quiet_test_of_great_power_makes_a_bend_unlikely():
    found = limit_test(exact("steep"))
    assert replace(found, p=0.9, power=0.95).chance(0.5) == pytest.approx(0.05)
    assert replace(found, p=0.9, power=ALARM).chance(0.3) == pytest.approx(0.3), "a test without power says nothing"
    assert replace(found, p=0.01, power=0.95).chance(0.5) == pytest.approx(0.95)


def test_the_command_says_what_the_test_finds(tmp_path, capsys):
    file = tmp_path / "points.csv"
    points = bent(known_ladder(TRUTHS["Chinchilla"], 1)[0], 0.08)
    file.write_text("\n".join([",".join(NAMES), *(",".join(str(getattr(p, n)) for n in NAMES) for p in points)]))
    run(["law", "limit", str(file), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["alarm"] and told["p"] == limit_test(points).p
    run(["law", "limit", str(file)])
    assert "The curve bends upwards" in capsys.readouterr().out
