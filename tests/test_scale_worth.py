"""From loss to worth, against the law's own forecast and in worlds that are known."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.scale.ladders import TRUTHS, known_ladder
from bench.scale.worth import WORTH, outcomes
from tenfold.cli.commands import run
from tenfold.scale.law import fit_law
from tenfold.scale.points import NAMES
from tenfold.scale.worth import Bending, Worth, loss_draws, next_generations, read_worth
from tenfold.spec.errors import TenfoldError

COUNT = 20_000


@pytest.fixture(scope="module", params=["Chinchilla", "Kaplan-like"])
def law(request):
    return fit_law(known_ladder(TRUTHS[request.param], 3)[0])


def test_draws_are_distributed_as_the_forecast_says(law):
    params, tokens = [1e9, 3e9, 1e10], [2e10, 6e10, 2e11]
    drawn = loss_draws(law, params, tokens, count=COUNT)
    for run_of, forecast in zip(drawn.T, law.predict_all(params, tokens), strict=True):
        low, high = forecast.intervals[95]
        assert np.median(run_of) == pytest.approx(forecast.median, abs=0.03 * (high - low))
        for level, (low, high) in forecast.intervals.items():
            assert np.mean((run_of >= low) & (run_of <= high)) == pytest.approx(level / 100, abs=0.012)


def test_equal_runs_share_all_doubt_but_their_noise(law):
    n, d, _ = law.optimum(10 * law.largest_flops)
    drawn = np.log(loss_draws(law, [n, n], [d, d], count=COUNT))
    between = np.median(np.abs(drawn[:, 0] - drawn[:, 1]))
    assert 0.5 * law.noise < between < 1.5 * law.noise
    assert np.corrcoef(drawn.T)[0, 1] > 0.3


def test_a_step_is_counted_over_the_whole_distribution(law):
    found = next_generations(law, WORTH, generations=2)
    gains = -100 * np.diff(np.log(found.loss), axis=1)
    for step in (0.0, 2.0, 5.0, 9.0):
        assert found.chances(step) == pytest.approx([float(np.mean(g >= step)) for g in gains.T], abs=0.01)
    assert [c / found.flops[0] for c in found.flops] == [1, 10, 100]


@settings(max_examples=3, deadline=None)
@given(st.floats(0, 1), st.floats(0, 0.2))
def test_a_bend_makes_no_step_likelier(law, chance, size):
    plain = next_generations(law, WORTH, generations=2)
    other = next_generations(law, WORTH, generations=2, bending=Bending(chance, size))
    assert all(b <= a for a, b in zip(plain.chances(4.0), other.chances(4.0), strict=True))
    assert (other.loss[:, 0] == plain.loss[:, 0]).all(), "a bend begins at the largest compute"


@pytest.mark.slow
def test_steps_come_about_as_often_as_is_stated_or_more():
    """More where the truth has no floor, which a law holds to be likely."""
    found = [row for name in TRUTHS for row in outcomes(name, range(30_000, 30_006))]
    stated, came = (np.array([row[i] for row in found], float) for i in (0, 1))
    assert stated.mean() - 0.1 < came.mean() < stated.mean() + 0.25
    assert np.corrcoef(stated, came)[0, 1] > 0.3, "steps that are said to be likelier come more often"


def test_a_table_is_levelled_and_holds_beyond_its_ends(tmp_path):
    file = tmp_path / "worth.csv"
    file.write_text("loss;value\n3.0;10\n2.0;40\n2.5;20\n2.6;24\n2.0;44\n")
    worth = read_worth(file)
    assert worth(np.array([2.0, 2.5, 2.55, 2.6, 3.0, 9.0])) == pytest.approx([42, 22, 22, 22, 10, 10])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("loss,score\n1,2\n", "no column 'value'"),
        ("loss,value\n1,x\n2,3\n", "row 2"),
        ("loss,value\n1,2\n", "two or more losses"),
        ("loss,value\n1,2\n2,3\n", "a lower loss must have a higher value"),
        ("loss,value\n", "two or more losses"),
    ],
)
def test_bad_tables_are_one_sentence(tmp_path, text, sentence):
    file = tmp_path / "worth.csv"
    file.write_text(text)
    with pytest.raises(TenfoldError, match=sentence):
        read_worth(file)


def test_a_table_that_ends_too_early_is_refused(law):
    with pytest.raises(TenfoldError, match="add a row"):
        next_generations(law, Worth(np.array([law.points[-1].loss, 9.0]), np.array([1.0, 0.0])))


def test_the_command_says_the_chances(tmp_path, capsys, law):
    points, table = tmp_path / "points.csv", tmp_path / "worth.csv"
    points.write_text("\n".join([",".join(NAMES), *(",".join(str(getattr(p, n)) for n in NAMES) for p in law.points)]))
    table.write_text("loss,value\n0.5,90\n3,40\n5,0\n")
    run(["law", "worth", str(points), str(table), "--step", "1", "--json"])
    told = json.loads(capsys.readouterr().out)["generations"]
    expected = next_generations(fit_law(law.points), read_worth(table)).chances(1.0)
    assert [row["chance"] for row in told] == [None, *expected]
    run(["law", "worth", str(points), str(table), "--step", "1", "--generations", "1"])
    assert "+1 or more" in capsys.readouterr().out
