"""The law against published points, published coefficients, and worlds that are known."""

import json

import numpy as np
import pytest

from bench.scale.published_laws import BESIROGLU, chinchilla_trimmed, olmo_ladder
from tenfold.scale.backtest import backtest, rung_by_rung
from tenfold.scale.forms import FORMS
from tenfold.scale.isoflop import minimum, rungs
from tenfold.scale.law import Law, classic_fit, fit_law
from tenfold.scale.points import Point, fingerprint, parse_columns, read_points
from tenfold.spec.errors import TenfoldError


@pytest.fixture(scope="module")
def chinchilla():
    return chinchilla_trimmed()


@pytest.fixture(scope="module")
def olmo():
    return olmo_ladder()


def test_besiroglus_coefficients(chinchilla):
    found = classic_fit(chinchilla)
    for name, (value, error) in BESIROGLU.items():
        assert found[name] == pytest.approx(value, abs=error), name


def test_ten_times_the_compute_on_chinchillas_points(chinchilla):
    found = backtest(chinchilla, 10).summary()
    assert found["held_out_points"] == 19 and found["mean_abs_error_pct"] <= 0.7
    assert found["inside_80"] >= 0.7 and found["inside_95"] >= 0.9


def test_ten_times_the_compute_on_the_olmo_ladder(olmo):
    found = backtest(olmo, 10).summary()
    assert found["held_out_points"] == 6 and found["mean_abs_error_pct"] <= 0.4
    assert found["inside_95"] == 1


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
            forecast = fit_law(points, seed=seed, bootstrap=40).predict(n, d)
            errors.append(abs(forecast.median / truth - 1))
            for level, (low, high) in forecast.intervals.items():
                inside[level].append(low <= truth <= high)
    assert np.mean(errors) < 0.02
    assert np.mean(inside[80]) >= 0.7 and np.mean(inside[95]) >= 0.85
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
    law = fit_law(points, bootstrap=20)
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


def test_a_law_survives_json():
    points, n, d, _ = ladder(1, WORLDS["kaplan"])
    law = fit_law(points, bootstrap=10)
    again = Law.from_dict(json.loads(json.dumps(law.to_dict())))
    assert again.predict(n, d) == law.predict(n, d)
    assert law.points_sha256 == fingerprint(points) != fingerprint(points[1:])


def test_rungs_are_back_tested_from_those_below():
    points, *_ = ladder(2, WORLDS["chinchilla"])
    tests = rung_by_rung(points)
    assert [t.fitted_points for t in tests] == [10]
    assert all(p.flops > t.fitted_up_to_flops for t in tests for p in t.predictions)


def test_bad_points_are_one_sentence(tmp_path):
    points, *_ = ladder(0, WORLDS["chinchilla"])
    with pytest.raises(TenfoldError, match="at least 6 points"):
        fit_law(points[:3])
    with pytest.raises(TenfoldError, match="nearly the same compute"):
        fit_law([p for p in points if p.flops == 1e11] * 2)
    with pytest.raises(TenfoldError, match="more than 1"):
        backtest(points, 0.5)
    file = tmp_path / "points.csv"
    file.write_text("n,d,losss\n1,2,3\n")
    with pytest.raises(TenfoldError, match="no column 'loss' for loss .*losss"):
        read_points(file)
    file.write_text("params,tokens,loss\n1e6,1e7,3\nx,2,3\n1e6,1e7,nan\n")
    found, unusable = read_points(file)
    assert found == [Point(1e6, 1e7, 6e13, 3.0)] and unusable == 2
    with pytest.raises(TenfoldError, match="--columns"):
        parse_columns("parms=n")
