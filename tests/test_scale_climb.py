"""A whole climb on a small corpus, as a person types it, and what becomes of a forecast that was touched."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from subprocess import CompletedProcess

import psutil
import pytest

from tenfold.cli import main
from tenfold.data.text.corpus import open_corpus
from tenfold.scale.forecast import score
from tenfold.scale.generations import begin, prompt_of, read_points_file, read_settings, unfinished
from tenfold.scale.ladder import LEAST_TOKENS, SIZES, plan_ladder
from tenfold.scale.options import ClimbSettings
from tenfold.spec.errors import TenfoldError

SMALL = ("--top", "6e10", "--vocab-size", "300", "--seq-len", "16", "--json")


def start(*arguments, threads=1):
    """`tenfold` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tenfold", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run in the background
    )


@pytest.fixture
def tenfold(monkeypatch):
    """`tenfold` in this process, which has imported everything; what it said and its exit status."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tenfold", *map(str, arguments)])
        status = 0
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            try:
                main()
            except SystemExit as ended:
                status = int(ended.code or 0)
        return CompletedProcess(arguments, status, out.getvalue(), err.getvalue())

    monkeypatch.setenv("COLUMNS", "120")
    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory, text_folder):
    """After a climb in a home where another had no room to say what it was asked for."""
    home = tmp_path_factory.mktemp("generations")
    (home / "g1").mkdir()
    (home / "g1" / "climb.json").touch()
    child = start("climb", "--corpus", text_folder, *SMALL, "--home", home)
    said, error = child.communicate(timeout=280)
    assert child.returncode == 0, error
    (home / "said.json").write_text(said)
    return home


def test_the_climb_leaves_what_the_design_says(home):
    generation = home / "g1"
    said = json.loads((home / "said.json").read_text())
    loss = said["scores"]["loss_bits_per_byte"]
    assert loss["measured"] > 0 and abs(loss["error_pct"]) < 25
    for name in (
        "forecast.json",
        "trajectory.json",
        "run.jsonl",
        "run.toml",
        "points.csv",
        "law.json",
        "score.json",
        "report.html",
        "model/config.json",
    ):
        assert (generation / name).exists(), name
    forecast = json.loads((generation / "forecast.json").read_text())
    assert forecast["flops"] == pytest.approx(10 * forecast["ladder_top_flops"], rel=0.05)
    for name in ("loss_bits_per_byte", "tokens_per_s", "seconds", "energy_kwh"):
        q = forecast[name]
        edges = [q["intervals"][level][i] for i, level in ((0, "95"), (0, "80"), (0, "50"), (1, "50"), (1, "80"), (1, "95"))]
        assert edges == sorted(edges) and edges[2] <= q["median"] <= edges[3]
    start = json.loads((generation / "run.jsonl").read_text().splitlines()[0])
    assert start["forecast_sha256"] == said["forecast_sha256"]


def test_the_sample_after_a_climb_goes_on_with_text_of_its_corpus(home):
    first, sample = prompt_of(home / "g1"), json.loads((home / "said.json").read_text())["sample"]
    corpus = open_corpus(next(home.glob("corpus-*-300")))
    assert 2 < len(first) < len(sample) and sample.startswith(first)
    assert corpus.text("validation", 0).startswith(first)


def test_a_forecast_whose_run_has_not_ended_is_not_scored(tmp_path):
    (tmp_path / "forecast.json").write_text("{}")
    for events, sentence in (((), "not begun"), (({"event": "start"},), "not ended")):
        (tmp_path / "run.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
        with pytest.raises(TenfoldError, match=sentence):
            score(tmp_path)


def test_a_forecast_that_was_changed_is_not_scored(home, tmp_path, tenfold):
    copy = tmp_path / "g1"
    shutil.copytree(home / "g1", copy)
    assert score(copy) == {k: json.loads((home / "said.json").read_text())[k] for k in ("forecast_sha256", "scores", "machine")}
    file = copy / "forecast.json"
    file.chmod(0o644)
    forecast = json.loads(file.read_text())
    forecast["loss_bits_per_byte"]["median"] += 1e-6
    file.write_text(json.dumps(forecast, indent=1) + "\n")
    with pytest.raises(TenfoldError, match="changed after the run began"):
        score(copy)
    refused = tenfold("score", copy)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and "Traceback" not in refused.stderr


def test_a_score_says_when_the_machine_was_in_another_state(home, tmp_path):
    copy = tmp_path / "g1"
    shutil.copytree(home / "g1", copy)
    forecast = json.loads((copy / "forecast.json").read_text())["busy_share"]
    assert 0 <= forecast <= 1
    events = [json.loads(line) for line in (copy / "run.jsonl").read_text().splitlines()]
    for more, alike in ((0.05, True), (0.3, False)):
        for event in events:
            if event["event"] == "end":
                event["busy_share"] = forecast + more
        (copy / "run.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        assert score(copy)["machine"]["speed_is_comparable"] == alike


@pytest.mark.slow
def test_a_climb_stopped_and_killed_gives_the_same_points_side_by_side(home, tmp_path, tenfold):
    """And on the corpus itself those of a climb on its text; a second one in its home is refused while it runs."""
    command = ("climb", "--corpus", next(home.glob("corpus-*-300")), *SMALL, "--home", tmp_path)
    for number in (signal.SIGINT, signal.SIGKILL):
        begun = set(tmp_path.glob("g1/ladder/*/run.jsonl"))
        child = start(*command, threads=2)
        deadline = time.monotonic() + 120
        while not set(tmp_path.glob("g1/ladder/*/run.jsonl")) - begun and time.monotonic() < deadline:
            time.sleep(0.02)
        second = tenfold("climb", *SMALL, "--seed", 1, "--home", tmp_path)
        assert second.returncode == 1 and f"Another process is climbing in {tmp_path} (process {child.pid} on" in second.stderr
        workers = psutil.Process(child.pid).children(recursive=True)
        child.send_signal(number)
        _, said = child.communicate(timeout=240)
        assert child.returncode in (130, -signal.SIGKILL) and "Traceback" not in said
        assert not psutil.wait_procs(workers, timeout=90)[1], "processes of the ladder were left behind"
    child, points, wanted = start(*command, threads=2), tmp_path / "g1" / "points.csv", (home / "g1" / "points.csv").read_text()
    deadline = time.monotonic() + 240
    while child.poll() is None and time.monotonic() < deadline and not (points.exists() and points.read_text() == wanted):
        time.sleep(0.05)
    child.kill()  # what comes after the points follows from them
    child.communicate()
    assert points.read_text() == wanted


@pytest.mark.slow
def test_again_climbs_from_the_generation_that_was_trained(home, tmp_path, tenfold):
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    settings = json.loads((copy / "g1" / "climb.json").read_text())
    (copy / "g1" / "climb.json").write_text(json.dumps(settings | {"top_flops": 6e9}))  # ten times the real one takes long
    done = tenfold("climb", "--again", "--home", copy, "--json")
    assert done.returncode == 0, done.stderr
    forecast = json.loads((copy / "g2" / "forecast.json").read_text())
    ladder = (copy / "g1" / "points.csv").read_text().splitlines()
    assert forecast["flops"] == pytest.approx(6e10) and forecast["points"] == len(ladder)  # its header stands for the new top
    assert "loss_bits_per_byte" in json.loads(done.stdout)["scores"]


def test_sample_writes_text(home, tenfold):
    done = tenfold("sample", home / "g1", "def ", "--max-new-tokens", 20, "--json")
    assert json.loads(done.stdout)["text"].startswith("def ")


def test_law_commands_read_the_climbs_points(home, tenfold):
    flops = [round(p.flops, -3) for p in read_points_file(home / "g1")]
    done = tenfold("law", "fit", home / "g1" / "points.csv", "--json", "--bits-per-byte")
    assert json.loads(done.stdout)["points"] == len(flops)
    done = tenfold("law", "backtest", home / "g1" / "points.csv", "--holdout", 1.9, "--json", "--bits-per-byte")
    assert json.loads(done.stdout)["held_out_points"] == sum(f > max(flops) / 1.9 for f in flops)


def test_a_generation_is_not_continued_with_other_settings(home, tmp_path, tenfold):
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    (copy / "g1" / "score.json").unlink()
    done = tenfold("climb", "--home", copy, "--top", "5e11")
    assert done.returncode == 1 and "begun with other settings" in done.stderr
    assert "top_flops 60000000000.0 and not 500000000000.0" in done.stderr


def test_a_climb_is_not_continued_on_a_text_that_changed(home, text_folder, tmp_path, tenfold):
    copy, texts = tmp_path / "home", tmp_path / "texts"
    shutil.copytree(home, copy)
    (copy / "g1" / "score.json").unlink()
    shutil.copytree(text_folder / "json", texts)
    asked = json.loads((copy / "g1" / "climb.json").read_text())
    (copy / "g1" / "climb.json").write_text(json.dumps(asked | {"corpus": str(texts)}))
    done = tenfold("climb", "--corpus", texts, *SMALL[:-1], "--home", copy)
    assert done.returncode == 1 and "begun before its text changed" in done.stderr


def test_a_refused_climb_leaves_no_generation_and_one_in_which_nothing_was_begun_gives_way(corpus, tmp_path, tenfold):
    for wrong, sentence in (
        (("--top", "1e15"), "readings where 4 are allowed"),
        (("--top", "1e3"), "climb higher"),
        (("--top", "1e12", "--vocab-size", "1000"), "has a vocabulary of 400 tokens"),
        (("--top", "1e12", "--seq-len", str(corpus.validation_tokens)), "climb higher|validation text is shorter"),
    ):
        done = tenfold("climb", "--corpus", corpus.directory, "--home", tmp_path, *wrong)
        assert done.returncode == 1 and re.search(sentence, done.stderr), done.stderr
        assert not list(tmp_path.iterdir())
    asked = ClimbSettings(top_flops=1e9)
    for number, folder in ((1, begin(tmp_path, ClimbSettings(), corpus)), (1, begin(tmp_path, asked, corpus))):
        assert folder == tmp_path / f"g{number}" and unfinished(tmp_path, asked) is None
    (tmp_path / "g1" / "forecast.json").touch()
    assert unfinished(tmp_path, asked) == tmp_path / "g1" and read_settings(tmp_path / "g1") == asked
    (tmp_path / "g1" / "climb.json").write_text("")
    assert unfinished(tmp_path, ClimbSettings()) is None and begin(tmp_path, ClimbSettings(), corpus) == tmp_path / "g2"


def test_errors_are_one_sentence(tmp_path, tenfold):
    for arguments, sentence in (
        (("climb", "--corpus", tmp_path / "nothing", "--home", tmp_path / "h"), "There is no corpus"),
        (("climb", "--again", "--home", tmp_path / "h2"), "no finished generation"),
        (("resume", tmp_path), "is not a run"),
        (("sample", tmp_path), "no tokenizer.json"),
        (("law", "fit", tmp_path / "x.csv"), "There is no file"),
    ):
        done = tenfold(*arguments)
        assert done.returncode == 1 and sentence in done.stderr.replace("\n", " "), done.stderr
        assert "Traceback" not in done.stderr
    done = tenfold("climb", "--top", "much", "--home", tmp_path / "h")
    assert done.returncode == 2 and "--top must be a number > 0 and <= 1e+40, not 'much'" in done.stderr


def test_a_ladder_too_low_is_refused():
    with pytest.raises(TenfoldError, match="climb higher"):
        plan_ladder(1e8, 2048, 256)


@pytest.mark.parametrize("top", [1e12, 1e14, 1e18])
def test_a_ladder_surrounds_its_centre_and_trains_every_run_long_enough(top):
    ladder = plan_ladder(top, 2048, 128)
    assert min(r.tokens for r in ladder) >= LEAST_TOKENS and max(r.flops for r in ladder) == top
    ratios = [r.tokens / r.params for r in ladder if r.flops == top]
    assert len(ratios) == SIZES and min(ratios) < 10 < max(ratios)


def test_help_has_examples(tenfold):
    for command in (("climb",), ("train",), ("resume",), ("sample",), ("law", "fit"), ("law", "backtest"), ("data", "build")):
        assert "Example" in tenfold(*command, "--help").stdout, command
