"""The law against published points, published coefficients, and worlds that are known."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.scale.ladders import ladders
from bench.scale.published_laws import BESIROGLU, chinchilla, chinchilla_trimmed
from tenfold.scale.backtest import backtest, rung_by_rung
from tenfold.scale.fitted import fit_table
from tenfold.scale.forms import FORMS
from tenfold.scale.isoflop import minimum, rungs
from tenfold.scale.law import Law, classic_fit, fit_law
from tenfold.scale.points import NAMES, Point, fingerprint, parse_columns, read_points
from tenfold.scale.questions import beyond_sentence, outliers, questions
from tenfold.spec.errors import TenfoldError

TABLES = ladders(None)


def test_besiroglus_coefficients():
    found = classic_fit(chinchilla_trimmed())
    for name, (value, error) in BESIROGLU.items():
        assert found[name] == pytest.approx(value, abs=error), name


@pytest.mark.parametrize(("table", "hidden", "worst_mean"), [("chinchilla-figure 4", 19, 0.65), ("olmo-c4", 6, 0.15)])
def test_ten_times_the_compute_on_published_points(table, hidden, worst_mean):
    found = backtest(TABLES[table], 10).summary()
    assert found["held_out_points"] == hidden and found["mean_abs_error_pct"] <= worst_mean
    assert found["inside_80"] >= 0.7


def test_intervals_hold_on_the_public_ladders():
    studies = ["gadre-c4", "porian-refinedweb_tuned", "porian-openwebtext2_cosine", "olmo-pile", "chinchilla-figure 4"]
    found = [backtest(TABLES[name], 10) for name in studies]
    inside = [p.inside[80] for test in found for p in test.predictions]
    assert 0.65 <= np.mean(inside) <= 0.97


def ladder(seed, world, noise=0.004):
    """Fifteen runs of three budgets in a known world, and the noiseless loss of a run at ten times the top."""
    rng = np.random.default_rng(seed)
    points = []
    for budget in (5e10, 1e11, 2e11):
        for n in (4e4, 6e4, 9e4, 12e4, 15e4):
            d = budget / 6 / n
            points.append(Point(n, d, budget, world(n, d) * np.exp(noise * rng.standard_normal())))
    n, d = 1.2e5 * 1.5, 2e12 / 6 / (1.2e5 * 1.5)
    return points, n, d, world(n, d) * np.exp(noise * rng.standard_normal())


WORLDS = {
    "chinchilla": lambda n, d: 0.9 + 30 * n**-0.35 + 300 * d**-0.45,
    "kaplan": lambda n, d: ((2e4 / n) ** 0.5 + 4e5 / d) ** 0.3 + 0.7,
    "steeper in tokens": lambda n, d: 1.0 + 12 * n**-0.25 + 2000 * d**-0.6,
    "none of the ensemble's": lambda n, d: 0.8 + 30 * n**-0.35 + 300 * d**-0.45 + 2.0 * (n * d) ** -0.08,
}


@pytest.mark.parametrize("seeds", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_intervals_hold_in_known_worlds(seeds):
    inside, errors = {50: [], 80: [], 95: []}, []
    for world in WORLDS.values():
        for seed in range(seeds):
            points, n, d, truth = ladder(seed, world)
            forecast = fit_law(points, seed=seed).predict(n, d)
            errors.append(abs(forecast.median / truth - 1))
            for level, (low, high) in forecast.intervals.items():
                inside[level].append(low <= truth <= high)
    assert np.mean(errors) < 0.02
    for level in (80, 95):  # two standard deviations of a count below the level
        share = level / 100
        assert np.mean(inside[level]) >= share - 2 * np.sqrt(share * (1 - share) / len(inside[level]))
    assert np.mean(inside[50]) <= 0.95, "intervals that always hold say nothing"


@pytest.mark.parametrize("name", FORMS)
def test_derivatives_of_every_form(name):
    form = FORMS[name]
    rng = np.random.default_rng(0)
    theta = rng.normal(0, 0.3, (1, len(form.parameters)))
    u, v = rng.normal(0, 1, 9), rng.normal(0, 1, 9)
    _, jacobian = form.value(theta, u, v)
    for i in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[0, i] = 1e-6
        numeric = (form.value(theta + step, u, v)[0] - form.value(theta - step, u, v)[0]) / 2e-6
        np.testing.assert_allclose(jacobian[..., i], numeric, rtol=1e-5, atol=1e-7)


def test_the_optimum_of_a_known_law():
    points, *_ = ladder(0, WORLDS["chinchilla"], noise=0.0)
    law = fit_law(points)
    # Hoffmann et al., equation 4: N* = G (C / 6)^(beta / (alpha + beta))
    a, b, alpha, beta = 30, 300, 0.35, 0.45
    expected = (alpha * a / (beta * b)) ** (1 / (alpha + beta)) * (2e12 / 6) ** (beta / (alpha + beta))
    assert law.optimum(2e12)[0] == pytest.approx(expected, rel=0.35)


def test_isoflop_minimum_of_a_parabola():
    sizes = np.geomspace(1e5, 1e6, 7)
    group = [Point(n, 1, 1e12, float(np.exp(0.1 * (np.log(n) - np.log(3e5)) ** 2 + 0.5))) for n in sizes]
    found = minimum(group)
    assert found.params == pytest.approx(3e5, rel=1e-3) and found.loss == pytest.approx(np.exp(0.5))
    assert minimum(group[4:]) is None and minimum(group[:2]) is None
    assert [len(g) for _, g in rungs([*group, Point(1e5, 1, 2e12, 1.0)])] == [7, 1]


@pytest.mark.parametrize("world", WORLDS)
def test_the_weights_of_a_mixture_sum_to_one(world):
    points, *_ = ladder(1, WORLDS[world])
    assert sum(m.weight for m in fit_law(points).members) == pytest.approx(1, abs=1e-12)


def test_a_law_survives_json():
    points, n, d, _ = ladder(1, WORLDS["kaplan"])
    law = fit_law(points)
    more = {"loss_range": [1.0, 2.0]}  # what nobody reads, as some files of this version have it
    again = Law.from_dict(json.loads(json.dumps({**law.to_dict(), **more})))
    assert again.predict(n, d) == law.predict(n, d)
    assert law.points_sha256 == fingerprint(points) != fingerprint(points[1:])


def test_rungs_are_back_tested_from_those_below():
    points, *_ = ladder(2, WORLDS["chinchilla"])
    tests = rung_by_rung(points)
    assert [t.fitted_points for t in tests] == [10]
    assert all(p.flops > t.fitted_up_to_flops for t in tests for p in t.predictions)


def test_bad_points_are_one_sentence(tmp_path):
    points, *_ = ladder(0, WORLDS["chinchilla"])
    with pytest.raises(TenfoldError, match="at least 6 different points"):
        fit_law(points[:3])
    with pytest.raises(TenfoldError, match="nearly the same compute"):
        fit_law([replace(p, params=p.params * k, tokens=p.tokens / k) for p in points if p.flops == 1e11 for k in (1, 1.1)])
    with pytest.raises(TenfoldError, match="more than 1"):
        backtest(points, 0.5)
    with pytest.raises(TenfoldError, match="no points"):
        backtest([], 10)
    file = tmp_path / "points.csv"
    file.write_text("n,d,losss\n1,2,3\n")
    with pytest.raises(TenfoldError, match="no column 'loss' for loss .*losss"):
        read_points(file)
    file.write_text("params,tokens,loss\n1e6,1e7,3\nx,2,3\n1e6,1e7,nan\n")
    found, unusable = read_points(file)
    assert found == [Point(1e6, 1e7, 6e13, 3.0)] and unusable == [3, 4]
    with pytest.raises(TenfoldError, match="--columns"):
        parse_columns("parms=n")


def test_besiroglus_five_are_named_by_row_and_the_forecast_is_given_without_them():
    points = chinchilla()
    left_out = {p.row for p in points} - {p.row for p in chinchilla_trimmed()}
    assert {p.row for p in outliers(points)} == left_out and len(left_out) == 5


def test_a_loss_three_times_too_high_is_named_and_hardly_moves_the_forecast():
    points, n, d, truth = ladder(4, WORLDS["chinchilla"])
    bad = replace(points[-1], loss=3 * points[-1].loss, row=99)
    found = fit_table([*points[:-1], bad], [], None, 2e12)
    assert [p.row for p in found.odd] == [99]
    assert found.without_odd.median == pytest.approx(truth, rel=0.03)
    assert found.law.predict(n, d).median == pytest.approx(truth, rel=0.05)


SAME = {"tokens": ({"B", "beta"}, lambda k: (5e7 * 2**k, 1e10)), "params": ({"A", "alpha"}, lambda k: (1e8, 1e9 * 2**k))}


@pytest.mark.parametrize("same", SAME)
def test_what_points_of_one_size_or_length_do_not_identify(same):
    unknown, of = SAME[same]
    runs = [of(k) for k in range(8)]
    rng = np.random.default_rng(1)
    points = [Point(n, d, 6 * n * d, WORLDS["chinchilla"](n, d) * np.exp(0.001 * rng.standard_normal())) for n, d in runs]
    found = fit_law(points).coefficients()
    assert not any(found[name].identified for name in unknown)
    assert all(c.interval_95[0] < c.interval_95[1] for c in found.values())


def test_six_exact_points_leave_coefficients_in_doubt():
    runs = [(1e7, 5e7), (1e7, 3.4e9), (7.9e7, 6.3e9), (1.5e8, 3e9), (4.1e8, 2e9), (4.1e8, 1.3e11)]
    points = [Point(n, d, 6 * n * d, 1.69 + 406.4 / n**0.34 + 410.7 / d**0.28) for n, d in runs]
    found = fit_law(points).coefficients()
    for name, value in (("E", 1.69), ("alpha", 0.34), ("beta", 0.28)):
        assert found[name].standard_error > 0.01 * value


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 3))
def test_order_and_repetition_of_rows_change_nothing(shuffler: random.Random, again):
    points, n, d, _ = ladder(5, WORLDS["kaplan"])
    mixed = [*points, *points[:again]]
    shuffler.shuffle(mixed)
    one, other = fit_law(points), fit_law(mixed)
    assert one.predict(n, d) == other.predict(n, d) and one.points_sha256 == other.points_sha256
    assert one.coefficients() == other.coefficients() and other.n_points == len(points)
    assert len(questions(mixed, [])) == (again > 0)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["params", "tokens", "loss"]), st.sampled_from([1e-2, 1e3, 0.7]))
def test_units_scale_what_is_forecast_and_nothing_else(what, factor):
    points, n, d, _ = ladder(6, WORLDS["chinchilla"])
    scaled = [replace(p, **{what: factor * getattr(p, what)}) for p in points]
    scaled = [replace(p, flops=6 * p.params * p.tokens) for p in scaled]
    run = {"params": n, "tokens": d, "loss": 1.0}
    plain, other = (
        fit_law(points).predict(n, d),
        fit_law(scaled).predict(*({**run, what: factor * run[what]}[k] for k in NAMES[:2])),
    )
    assert other.median == pytest.approx(plain.median * (factor if what == "loss" else 1), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p: replace(p, params=p.params / 1e9, flops=p.flops / 1e9), "parameters are"),
        (lambda p: replace(p, flops=p.flops / 8.64e19), "PF-days"),
        (lambda p: replace(p, flops=p.flops * 1e3), "6 N D"),
        (lambda p: replace(p, loss=float(np.exp(p.loss))), "perplexities"),
    ],
)
def test_odd_units_are_questioned(change, sentence):
    points = TABLES["gadre-c4"]
    assert not questions(points, [])
    assert any(sentence in question for question in questions([change(p) for p in points], []))


def test_losses_that_do_not_fall_are_no_law():
    points, *_ = ladder(0, WORLDS["chinchilla"])
    for loss in (lambda p: 3.0, lambda p: 1 + 0.1 * np.log(p.flops), lambda p: 1 / p.loss):
        with pytest.raises(TenfoldError, match="no law"):
            fit_law([replace(p, loss=loss(p)) for p in points])


def test_how_far_beyond_the_points_a_forecast_lies():
    points, *_ = ladder(0, WORLDS["chinchilla"])
    assert "within the points" in beyond_sentence(points, 1e5, 1e5, 1e11)
    assert "10 times the largest compute" in beyond_sentence(points, 3e5, 1e6, 2e12)
    assert "nothing supports" in beyond_sentence(points, 3e5, 1e6, 2e16)


SPELLINGS = {
    "semicolons": "params;tokens;loss\n{0:.0f};{1:.0f};{2}\n",
    "tabs": "params\ttokens\tloss\n{0:.0f}\t{1:.0f}\t{2}\n",
    "thousands": 'params,tokens,loss\n"{0:,.0f}","{1:,.0f}",{2}\n',
    "suffixes": "params,tokens,loss\n{3:.6f}M,{4:.9f}B,{2}\n",
    "a byte-order mark": "\ufeffparams,tokens,loss\n{0:.0f},{1:.0f},{2}\n",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@settings(max_examples=20, deadline=None)
@given(n=st.integers(10**6, 10**12), d=st.integers(10**7, 10**14))
def test_every_spelling_of_a_number_is_read_the_same(spelling, n, d, tmp_path_factory):
    file = tmp_path_factory.mktemp("points") / "points.csv"
    file.write_text(SPELLINGS[spelling].format(n, d, 2.5, n / 1e6, d / 1e9), encoding="utf-8")
    (point,), unusable = read_points(file)
    assert point.params == pytest.approx(n, rel=1e-6) and point.tokens == pytest.approx(d, rel=1e-5) and not unusable
