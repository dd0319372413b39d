"""The record of forecasts: frozen, scored once, and right whatever happens while it is written."""

import json
import math
import multiprocessing
import os
import signal
import time
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tenfold.circle.commands import forecasts as forecasts_command
from tenfold.console.views.record import record
from tenfold.spec.errors import TenfoldError
from tenfold.spec.forecasts import (
    FILE,
    LEVELS,
    Forecast,
    Learnt,
    Scored,
    around,
    calibrated,
    forecast,
    normal,
    of_intervals,
    of_samples,
    outcome,
    read_forecasts,
)


def made(key="climb/g1/loss", quantiles=None):
    return Forecast(
        key=key, who="climb", kind="loss", unit="bits/byte", quantiles=quantiles or normal(2.0, 0.1), data={"law.json": "ab"}
    )


def test_a_forecast_is_frozen_and_its_outcome_is_added_once(tmp_path):
    first = forecast(tmp_path, made())
    assert forecast(tmp_path, made(quantiles=normal(9.0, 0.1))) == first and first.made
    assert read_forecasts(tmp_path)[0].inside_80 is None
    scored = outcome(tmp_path, first.key, 2.05)
    assert scored.inside_80 and outcome(tmp_path, first.key, 2.05) == scored
    with pytest.raises(TenfoldError, match="has its outcome already"):
        outcome(tmp_path, first.key, 2.06)
    with pytest.raises(TenfoldError, match="There is no forecast 'x'"):
        outcome(tmp_path, "x", 1.0)
    with pytest.raises(TenfoldError, match="must rise"):
        forecast(tmp_path, made("other", tuple(reversed(normal(2.0, 0.1)))))
    with pytest.raises(TenfoldError, match="finite"):
        forecast(tmp_path, made("other", (math.nan,) * 7))
    assert len((tmp_path / FILE).read_text().splitlines()) == 2


@given(st.floats(-3, 3))
def test_the_score_is_that_of_the_distribution(measured):
    """CRPS of a normal forecast in closed form (Gneiting and Raftery 2007, equation 21), to what seven quantiles can resolve."""
    phi, Phi = NormalDist().pdf(measured), NormalDist().cdf(measured)
    exact = measured * (2 * Phi - 1) + 2 * phi - 1 / math.sqrt(math.pi)
    scored = Scored(forecast=made(quantiles=normal(0.0, 1.0)), measured=measured)
    assert scored.crps == pytest.approx(exact, rel=0.15, abs=0.02)
    assert scored.inside_80 == (abs(measured) <= NormalDist().inv_cdf(0.9))


def test_quantiles_of_samples_and_of_intervals_are_those_of_the_distribution():
    draw = np.random.default_rng(0).normal(size=20_001)
    assert of_samples(draw) == pytest.approx(np.quantile(draw, LEVELS))
    z = {level: NormalDist().inv_cdf(0.5 + level / 200) for level in (50, 80, 95)}
    found = of_intervals(0.0, {str(level): (-z[level], z[level]) for level in z})
    assert found == pytest.approx([NormalDist().inv_cdf(level) for level in LEVELS], abs=1e-9)
    assert around(3.0, 0.1) == pytest.approx([3.0 * math.exp(0.1 * NormalDist().inv_cdf(level)) for level in LEVELS])


def write_without_end(home, who):
    for i in range(10**6):
        key = f"{who}/{i}"
        forecast(home, made(key))
        outcome(home, key, 2.0)


@pytest.mark.parametrize("truth", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("states", [around, normal])
def test_intervals_come_to_hold_whatever_spread_their_maker_states(tmp_path, truth, states):
    drawn, held, widths = np.random.default_rng(0), [], []
    for i in range(120):
        median = float(drawn.uniform(5, 50))
        said = forecast(tmp_path, made(str(i), states(median, 0.1)))
        off = truth * 0.1 * drawn.standard_normal()
        held.append(outcome(tmp_path, str(i), median * math.exp(off) if states is around else median + off).inside_80)
        low, high = (said.quantiles[LEVELS.index(level)] for level in (0.1, 0.9))
        widths.append(math.log(high / low) if states is around else high - low)
        assert said.median == pytest.approx(median) and said.learnt.outcomes == i
    assert 0.7 <= np.mean(held[20:]) <= 0.9
    assert widths[-1] / widths[0] == pytest.approx(truth, rel=0.25)  # the first is as stated


def test_a_forecast_learns_from_its_own_maker_and_kind_alone_and_once(tmp_path):
    for i, ratio in enumerate((1.5, 1 / 1.5) * 3):
        forecast(tmp_path, made(str(i), around(10.0, 0.2)))
        outcome(tmp_path, str(i), 10 * ratio)
    z = math.log(1.5) / 0.2
    steps = [1.0]  # each outcome counts by the width that was stated, not by the one that it was given
    for n in range(1, 7):
        steps.append(math.sqrt((4 + n * z * z) / (4 + n)))
    assert [one.forecast.learnt.factor for one in read_forecasts(tmp_path)] == pytest.approx(steps[:-1])
    next_one = calibrated(tmp_path, made("next", around(10.0, 0.2)))
    assert next_one.learnt == Learnt(pytest.approx(steps[-1]), 6)
    assert next_one.quantiles == pytest.approx(around(10.0, 0.2 * steps[-1]))
    assert calibrated(tmp_path, next_one) == next_one == structs.replace(forecast(tmp_path, next_one), made="")
    other = structs.replace(made("other", around(10.0, 0.2)), kind="speed")
    assert forecast(tmp_path, other).quantiles == other.quantiles
    assert forecast(tmp_path, structs.replace(other, key="third", kind="loss", who="rank")).quantiles == other.quantiles


def test_the_command_and_the_console_say_what_a_forecast_learnt(tmp_path, capsys):
    forecast(tmp_path, made("first", around(10.0, 0.2)))
    outcome(tmp_path, "first", 10.0)
    forecast(tmp_path, made("second", around(10.0, 0.2)))
    forecasts_command(home=tmp_path, json=True)
    first, second = json.loads(capsys.readouterr().out)["forecasts"]
    factor = math.sqrt(4 / 5)
    assert first["learnt"] == {"factor": 1.0, "outcomes": 0} and second["learnt"] == {
        "factor": pytest.approx(factor),
        "outcomes": 1,
    }
    forecasts_command(home=tmp_path)
    assert "0.89" in capsys.readouterr().out
    rows = record(tmp_path).rows
    assert rows[0].factor is None and rows[1].factor.value == pytest.approx(factor) and rows[1].outcomes == 1


def test_one_outcome_from_another_world_does_not_end_all_precision(tmp_path):
    forecast(tmp_path, made("far", normal(0.0, 1.0)))
    outcome(tmp_path, "far", 1e9)
    assert calibrated(tmp_path, made("next", normal(0.0, 1.0))).learnt.factor == pytest.approx(2.0)
    forecast(tmp_path, made("certain", (3.0,) * 7))
    outcome(tmp_path, "certain", 4.0)  # by how many deviations nobody can say
    assert calibrated(tmp_path, made("next", normal(0.0, 1.0))).learnt.outcomes == 1


def test_kill_9_while_several_write_loses_nothing_that_was_returned(tmp_path):
    context = multiprocessing.get_context("fork")
    for round_ in range(3):
        children = [context.Process(target=write_without_end, args=(tmp_path, f"{round_}-{i}")) for i in range(2)]
        for child in children:
            child.start()
        before, deadline = len(read_forecasts(tmp_path)), time.monotonic() + 60
        while len(read_forecasts(tmp_path)) < before + 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        for child in children:
            os.kill(child.pid, signal.SIGKILL)
            child.join()
        found = read_forecasts(tmp_path)
        assert len(found) >= before + 6
        for i in range(2):
            mine = [one.forecast.key for one in found if one.forecast.key.startswith(f"{round_}-{i}/")]
            assert mine == [f"{round_}-{i}/{n}" for n in range(len(mine))]
            assert all(one.measured == 2.0 for one in found if one.forecast.key in mine[:-1])
