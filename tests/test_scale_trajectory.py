"""The forecast along a run, on the OLMo ladder's published curves and on curves of a known shape."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from bench.scale.ladders import TRUTHS, known_ladder
from bench.scale.trajectory import TABLE
from tenfold.cli.commands import run
from tenfold.scale import documents
from tenfold.scale.curves import write_trajectory
from tenfold.scale.law import fit_law
from tenfold.scale.trajectory import MOMENTS, Curve, forecast_trajectory, read_curves
from tenfold.spec.errors import TenfoldError
from tenfold.train.metrics import MetricsWriter
from tenfold.train.result import RunResult

DONE = np.linspace(0.02, 1, 50)


def shape(tokens_per_param):
    """Loss over that of the end, along a run."""
    return 1 + 0.1 * (1 + 0.2 * np.log(20 / tokens_per_param)) * (DONE**-0.5 - 1)


def known(seed):
    points, target = known_ladder(TRUTHS["Chinchilla"], seed)
    return [Curve(str(i), p.params, DONE * p.tokens, p.loss * shape(p.tokens / p.params)) for i, p in enumerate(points)], target


def test_ten_times_the_compute_along_published_runs():
    curves = read_curves(TABLE)
    edge = max(c.point.flops for c in curves) / 10 * 1.0001
    small, hidden = ([c for c in curves if (c.point.flops > edge) is above] for above in (False, True))
    assert len(hidden) == 6
    errors, inside = [], []
    for c in hidden:
        for moment, loss in zip(forecast_trajectory(small, c.params, c.point.tokens), c.watched(), strict=True):
            errors.append(abs(moment.median / loss - 1))
            inside.append(moment.intervals[80][0] <= loss <= moment.intervals[80][1])
    assert np.mean(errors) < 0.005
    assert np.mean(inside) >= 0.7


def test_the_end_is_what_the_law_says_and_the_way_there_a_known_shape():
    curves, target = known(1)
    found = forecast_trajectory(curves, target.params, target.tokens)
    law = fit_law([c.point for c in curves]).predict(target.params, target.tokens)
    *along, mean = found
    assert along[-1].share == 1 and along[-1].median == pytest.approx(law.median, rel=1e-3)
    assert np.array(along[-1].intervals[80]) == pytest.approx(np.array(law.intervals[80]), rel=2e-3)
    expected = law.median * np.interp(MOMENTS, DONE, shape(target.tokens / target.params))
    assert [m.median for m in along] == pytest.approx(expected, rel=3e-3)
    assert mean.share is None and along[-1].median < mean.median < along[-2].median


def test_the_band_of_a_generation_comes_from_the_records_of_its_ladder(tmp_path):
    """The runs log nats per token, the law knows bits per byte; runs that have not finished count for nothing."""
    (curves, target), nat, generation = known(1), 0.4, tmp_path / "g1"
    documents.write(generation / "climb.json", {"parent": None})
    law = fit_law([c.point for c in curves])
    for finished in (False, True):
        for c in curves:
            folder = generation / "ladder" / c.run
            end = RunResult(folder, True, 50, c.loss[-1] / nat, c.loss[-1], c.params, c.tokens[-1], 0, 1, 1, 1, 1, "", 1, 0)
            with MetricsWriter(folder) as metrics:
                for step, (tokens, loss) in enumerate(zip(c.tokens, c.loss, strict=True)):
                    metrics.write("step", step=step, tokens=tokens, loss=loss / nat)
                if finished:
                    metrics.write("end", **asdict(end))
        write_trajectory(generation, law, target.params, target.tokens)
        assert (generation / documents.TRAJECTORY).exists() is finished
    *along, mean = documents.read(generation / documents.TRAJECTORY)["moments"]
    expected = (
        law.predict(target.params, target.tokens).median / nat * np.interp(MOMENTS, DONE, shape(target.tokens / target.params))
    )
    assert [m["median"] for m in along] == pytest.approx(expected, rel=0.01) and mean["share"] is None
    assert all(m["intervals"]["80"][0] < m["median"] < m["intervals"]["80"][1] for m in along)


def test_what_other_runs_scatter_widens_the_band():
    curves, target = known(2)
    rng = np.random.default_rng(0)

    def scattered(c):
        return replace(c, loss=c.loss * np.where(DONE < 0.95, np.exp(0.03 * rng.standard_normal()), 1))

    one, other = (forecast_trajectory(c, target.params, target.tokens) for c in (curves, [scattered(c) for c in curves]))
    width = [[np.log(m.intervals[80][1] / m.intervals[80][0]) for m in found] for found in (one, other)]
    assert width[1][4] == pytest.approx(2 * 1.28 * 0.03, rel=0.3) and width[1][4] > 1.5 * width[0][4]
    assert width[1][9] == pytest.approx(width[0][9], rel=1e-6), "the end does not depend on the way there"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("run,params,tokens\na,1,2\n", "no column 'loss'"),
        ("run,params,tokens,loss\na,1,x,3\n", "row 2"),
        ("run,params,tokens,loss\na,1,5,3\na,1,10,2\n", "beyond a tenth"),
        ("run,params,tokens,loss\na,1,1,3\na,2,10,2\n", "its own name"),
    ],
)
def test_bad_curves_are_one_sentence(tmp_path, text, sentence):
    file = tmp_path / "curves.csv"
    file.write_text(text)
    with pytest.raises(TenfoldError, match=sentence):
        read_curves(file)


def test_too_few_runs_are_refused():
    with pytest.raises(TenfoldError, match="6 finished runs"):
        forecast_trajectory(known(0)[0][:5], 1e9, 1e10)


def test_the_command_says_the_band(capsys):
    arguments = ["law", "trajectory", str(TABLE), "--params", "7e9", "--tokens", "1.4e11"]
    run([*arguments, "--json"])
    told = json.loads(capsys.readouterr().out)["moments"]
    assert [m["share"] for m in told] == [*MOMENTS, None]
    run(arguments)
    assert "mean of the last tenth" in capsys.readouterr().out
