"""Dense and expert generations beside one another; the law by active and total parameters."""

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tenfold.scale.beside import comparison, other_family
from tenfold.scale.commands import FitOptions, PointOptions, beside_lines
from tenfold.scale.commands import fit as law_fit
from tenfold.scale.law import fit_law
from tenfold.scale.points import Point
from tenfold.scale.sparsity import fit_sparsity
from tenfold.spec.errors import TenfoldError


def runs(gamma: float, total_over_active: float, seed: int, noise: float = 0.003) -> list[tuple[Point, float]]:
    """A ladder whose loss is Chinchilla's form of N (M / N)^gamma, with noise."""
    draw, found = np.random.default_rng(seed), []
    for flops in (1e11, 2e11, 4e11):
        for n in (2e4, 5e4, 1e5, 2e5):
            effective, tokens = n * total_over_active**gamma, flops / 6 / n
            loss = 0.6 + (3e3 / effective) ** 0.35 + (2e5 / tokens) ** 0.35
            found.append((Point(n, tokens, flops, loss * np.exp(noise * draw.standard_normal())), n * total_over_active))
    return found


@pytest.mark.parametrize("gamma", [0.0, 0.4])
def test_what_idle_parameters_count_is_found_again(gamma):
    both = runs(gamma, 1.0, 1) + runs(gamma, 6.0, 2)
    found = fit_sparsity([p for p, _ in both], [total for _, total in both], bootstrap=10)
    assert found.gamma == pytest.approx(gamma, abs=0.06)
    assert found.interval_80[0] < found.interval_80[1] and found.law.noise < 0.006
    assert found.effective(1e5, 6e5) == pytest.approx(1e5 * 6**found.gamma)


def test_points_that_say_nothing_of_experts_are_refused():
    dense = runs(0.3, 1.0, 1)
    with pytest.raises(TenfoldError, match="no runs"):
        fit_sparsity([], [])
    with pytest.raises(TenfoldError, match="the same share of active parameters"):
        fit_sparsity([p for p, _ in dense], [total for _, total in dense])
    with pytest.raises(TenfoldError, match="cannot be fewer than active"):
        fit_sparsity([p for p, _ in dense], [total / 3 for _, total in dense])


def test_the_command_reads_a_column_of_total_parameters(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tenfold.scale.sparsity.fit_sparsity", partial(fit_sparsity, bootstrap=4))
    with (tmp_path / "points.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["params", "tokens", "loss", "all"])
        writer.writerows([p.params, p.tokens, p.loss, total] for p, total in runs(0.4, 1.0, 1) + runs(0.4, 6.0, 2))
    law_fit(tmp_path / "points.csv", options=FitOptions(total="all"), json=True)
    assert json.loads(capsys.readouterr().out)["gamma"] == pytest.approx(0.4, abs=0.06)


@pytest.mark.parametrize(
    ("reading", "options", "says"),
    [
        (PointOptions(), {"flops": 1e22}, "without --flops: leave out either --total or that option"),
        (PointOptions(), {"out": Path("law.json"), "plot": Path("law.txt")}, "without --out and --plot: .* or those options"),
        (PointOptions(bits_per_byte=True), {}, "without --bits-per-byte"),
    ],
)
def test_options_that_have_no_effect_beside_total_are_refused(tmp_path, reading, options, says):
    with pytest.raises(TenfoldError, match=says):
        law_fit(tmp_path / "points.csv", reading=reading, options=FitOptions(total="all", **options))


@pytest.fixture(scope="module")
def law():
    return fit_law([p for p, _ in runs(0.4, 1.0, 1)])


def generation(
    home: Path, name: str, family: str, forecast: float, width_80: float, measured: float, law, top: float = 1e12
) -> Path:
    """A scored generation of which only what a comparison reads is real."""
    folder = home / name
    folder.mkdir(parents=True)
    settings = {"corpus": "x", "top_flops": top, "vocab_size": 300, "seq_len": 64, "seed": 0, "device": "cpu", "optimizer": "muon"}
    (folder / "climb.json").write_text(json.dumps(settings | {"family": family}))
    interval = [forecast * np.exp(-width_80), forecast * np.exp(width_80)]
    (folder / "forecast.json").write_text(json.dumps({"loss_bits_per_byte": {"median": forecast, "intervals": {"80": interval}}}))
    (folder / "score.json").write_text(json.dumps({"scores": {"loss_bits_per_byte": {"measured": measured}}}))
    (folder / "law.json").write_text(json.dumps(law.to_dict()))
    return folder


def test_the_difference_and_its_intervals(tmp_path, law):
    dense = generation(tmp_path, "g1", "llama3", 1.50, 0.03, 1.52, law)
    experts = generation(tmp_path, "g2", "llama4", 1.44, 0.04, 1.43, law)
    generation(tmp_path, "g3", "llama3", 1.4, 0.03, 1.4, law, top=1e13)  # of other compute
    assert other_family(experts) == dense and other_family(dense) == experts and other_family(tmp_path / "g3") is None
    found = comparison(experts, dense)
    assert found == comparison(dense, experts)
    assert found["forecast_difference"]["pct"] == pytest.approx(-4.0)
    low, high = found["forecast_difference"]["interval_80"]
    assert np.log(1 + high / 100) - np.log(1 + low / 100) == pytest.approx(2 * 0.05)  # 3 and 4 % at right angles
    assert found["measured_difference"]["pct"] == pytest.approx(100 * (1.43 / 1.52 - 1))
    low, high = found["measured_difference"]["interval_80"]
    assert low < found["measured_difference"]["pct"] < high < -4
    assert beside_lines(experts)[1].startswith("  forecast -4.00 % (80 %: ")
    run = dense / "ladder" / "one" / "run.jsonl"
    run.parent.mkdir(parents=True)
    run.write_text("")
    assert comparison(experts, dense)["sparsity"] is None, "only one of the two has a ladder"
    generation(tmp_path, "g4", "another", 1.4, 0.03, 1.4, law)
    assert other_family(tmp_path / "g4") is None and other_family(experts) == dense
    with pytest.raises(TenfoldError, match="not a dense generation and one with experts at equal compute"):
        comparison(tmp_path / "g3", experts)


# Published quantiles of Student's t at 90 %, for 18, 9 and 6 degrees of freedom. A law of 12 points has 9, one of 6 points has 3.
@pytest.mark.parametrize(("points", "t"), [((12, 12), 1.3304), ((12, 6), 1.3830), ((6, 6), 1.4398)])
def test_the_noise_has_as_many_degrees_of_freedom_as_the_points_give(tmp_path, law, points, t):
    assert law.n_points == 12 and law.freedom == 9
    dense = generation(tmp_path, "g1", "llama3", 1.5, 0.03, 1.5, replace(law, n_points=points[0]))
    experts = generation(tmp_path, "g2", "llama4", 1.5, 0.03, 1.5, replace(law, n_points=points[1]))
    _, high = comparison(dense, experts)["measured_difference"]["interval_80"]
    assert np.log(1 + high / 100) == pytest.approx(t * 2**0.5 * law.noise, rel=1e-3)


@pytest.mark.slow
def test_a_climb_with_experts_is_reported_beside_the_dense_one(text_folder, tmp_path):
    tenfold = Path(sys.executable).with_name("tenfold")
    for family in ("llama3", "llama4"):
        arguments = ["--top", "6e10", "--vocab-size", "300", "--seq-len", "16", "--family", family, "--home", tmp_path]
        done = subprocess.run([tenfold, "climb", "--corpus", text_folder, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "Experts (g2) beside dense (g1) at equal compute" in done.stdout
    page = (tmp_path / "g2" / "report.html").read_text()
    assert "Dense and experts at equal compute" in page and "One law for the 24 runs" in page.replace("\n", " ")
    shutil.rmtree(tmp_path / "g1" / "ladder")
    shutil.rmtree(tmp_path / "g2" / "ladder")
    assert comparison(tmp_path / "g1", tmp_path / "g2")["sparsity"] is None
