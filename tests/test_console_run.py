"""The view of runs: what is read of a record and its time, against plain readings of the same files; faults, stop and resume; the
page in a real Chromium."""

import json
import math
import socket
import subprocess
import sys
import time

import pytest
from console_home import console, needs_chromium, opened
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from tenfold.console.app import make_app
from tenfold.console.options import ConsoleOptions
from tenfold.console.runs import record as records
from tenfold.console.runs.control import resume, stop
from tenfold.console.runs.document import document
from tenfold.console.runs.find import names
from tenfold.console.runs.follow import Follow
from tenfold.console.runs.record import FIELDS, Record, Records
from tenfold.console.runs.spent import read_spent
from tenfold.console.runs.thin import thinned, within
from tenfold.scale import documents
from tenfold.serve.api.keys import make_key
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import one_at_a_time, read_lines, write_json
from tenfold.train.goodput import read_goodput
from tenfold.train.metrics import MetricsWriter

pytest_plugins = ["chat_page", "console_home"]

NUMBER = st.none() | st.floats(-1e6, 1e6, width=32) | st.integers(-1000, 1000)
STEP = st.fixed_dictionaries(
    {"event": st.just("step"), "time": st.floats(0, 1e9), "step": st.integers(0, 10**12)},
    optional={**dict.fromkeys(FIELDS, NUMBER), "sources": st.dictionaries(st.text(), st.integers())},
)
OTHER = st.fixed_dictionaries({"event": st.sampled_from(["resume", "evaluation", "\u2028"]), "loss": st.text() | NUMBER})
LINES = st.lists(st.tuples(STEP | OTHER, st.integers(0, 9)), max_size=30)  # an event, and 0 for one that a kill tore


def same(ours, theirs):
    return math.isnan(ours) if theirs is None else ours == theirs


@given(LINES, st.lists(st.integers(1, 400), max_size=6))
def test_a_record_that_grows_has_the_rows_of_its_file(tmp_path_factory, lines, pieces):
    path = tmp_path_factory.mktemp("record") / "run.jsonl"
    texts = [json.dumps(event)[: None if whole else 20] for event, whole in lines]
    data = "".join(f"{text}\n" for text in texts).encode()
    path.write_bytes(b"")
    record = Record(path)
    at = 0
    for piece in [*pieces, len(data)]:
        with path.open("ab") as stream:
            stream.write(data[at : at + piece])
        at += piece
        record.read()
    expected = [(number, event) for number, (event, whole) in enumerate(lines, 1) if whole]
    steps = [(number, event) for number, event in expected if event["event"] == "step"]
    assert record.events == [one for one in expected if one[1]["event"] != "step"]
    assert record.rows["line"].tolist() == [number for number, _ in steps]
    for i, (_, event) in enumerate(steps):
        row = record.rows[i]
        assert row["step"] == event["step"] and record.row(i) == event
        assert all(same(float(row[name]), event.get(name)) for name in FIELDS)


def test_numbers_that_no_run_has_are_left_out(tmp_path):
    lines = ('{"event": "step", "step": %s}' % ("9" * 400), '{"event": "step", "step": 1, "loss": 1%s}' % ("0" * 400))
    good = '{"event": "step", "step": 2, "loss": 0.5}'
    (tmp_path / "run.jsonl").write_text("\n".join([lines[0], good, *lines, ""]))
    record = Record(tmp_path / "run.jsonl").read()
    assert record.rows["step"].tolist() == [2] and record.rows["line"].tolist() == [2] and len(record.events) == 3


def test_a_long_record_is_read_in_pieces_and_anew_when_it_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "CHUNK", 100)
    with MetricsWriter(tmp_path) as metrics:
        for step in range(50):
            metrics.write("step", step=step, loss=float(step))
    kept = Records(most_rows=10)
    first = kept.read(tmp_path / "run.jsonl")
    assert first.rows["loss"].tolist() == list(range(50))
    with MetricsWriter(tmp_path, resume_step=20) as metrics:  # the file begins anew, and reads as one run
        metrics.write("step", step=21, loss=-1.0)
    again = kept.read(tmp_path / "run.jsonl")
    assert again is first and again.rows["loss"].tolist() == [*range(21), -1]
    (tmp_path / "other").mkdir()
    with MetricsWriter(tmp_path / "other") as metrics:
        metrics.write("step", step=1, loss=1.0)
    kept.read(tmp_path / "other" / "run.jsonl")
    assert kept.read(tmp_path / "run.jsonl") is not first, "the longest are not kept beyond what memory may hold"


@given(st.lists(st.floats(-1e3, 1e3, width=32) | st.just(math.nan), min_size=1, max_size=200), st.integers(1, 40))
def test_a_thinned_picture_keeps_every_extreme_and_the_mean(values, bins):
    rows = records.np.zeros(len(values), records.ROW)
    rows["step"], rows["loss"] = range(len(values)), values
    made = thinned(rows, ["loss"], bins)
    known = [value for value in values if not math.isnan(value)]
    if not known:
        assert made["fields"] == {}
        return
    loss = made["fields"]["loss"]
    assert len(made["x"]) == min(bins, len(values)) and made["x"] == sorted(set(made["x"]))
    if len(values) > bins:
        lows, highs = ([value for value in loss[end] if value is not None] for end in ("low", "high"))
        assert min(lows) == pytest.approx(min(known), rel=1e-5) and max(highs) == pytest.approx(max(known), rel=1e-5)
        for low, mean, high in zip(loss["low"], loss["mean"], loss["high"], strict=True):
            assert mean is None or low - 1e-2 <= mean <= high + 1e-2
    else:
        assert "low" not in loss and [value for value in loss["mean"] if value is not None] == pytest.approx(known, rel=1e-5)


@given(st.lists(st.integers(0, 50), max_size=40), st.none() | st.integers(-1, 51), st.none() | st.integers(-1, 51))
def test_a_part_has_the_steps_between_its_ends(steps, start, end):
    steps = records.np.array(sorted(steps))
    inside = [s for s in steps if (start is None or s >= start) and (end is None or s <= end)]
    assert steps[within(steps, start, end)].tolist() == inside


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 12), st.booleans()), min_size=1, max_size=5))
def test_the_time_of_a_run_is_that_of_all_its_lines(tmp_path_factory, starts):
    path = tmp_path_factory.mktemp("time") / "time.jsonl"
    clock, text = 100.0, ""
    for back, steps, torn in starts:  # each start goes on from a step at or before the last one
        text += json.dumps({"began": clock, "time": clock + 1.5, "step": back}) + "\n"
        for i in range(steps):
            clock += 2.25
            row = {"time": clock, "step": back + i, "stepping": 2.0 * i, "saving": 0.125 * i, "evaluating": 0.0625 * i}
            text += json.dumps(row) + "\n"
        text += '{"time": 1, "st\n' if torn else ""
        clock += 7
    path.write_text(text)
    assert read_spent(path) == read_goodput(path)


def test_no_time_is_no_time(tmp_path):
    assert read_spent(tmp_path / "time.jsonl") == {}
    (tmp_path / "time.jsonl").touch()
    assert read_spent(tmp_path / "time.jsonl") == {}


def moments(end):
    shares = (0.1, 0.4, 0.7, 1.0, None)
    return [{"share": s, "median": end / (s or 1) ** 0.2, "intervals": {"80": [end / 2, end * 2]}} for s in shares]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A home with a run with experts, faults and a forecast, and another beside it in a ladder."""
    home = tmp_path_factory.mktemp("runs") / "generations"
    folder = home / "g1"
    folder.mkdir(parents=True)
    with MetricsWriter(folder) as metrics:
        metrics.write("start", version=2, hyperparameters={"steps": 400})
        for step in range(1, 301):
            share = step / 600
            more = {"expert_load_max": 1.5, "expert_load": [[share, 1 - share], [0.25, 0.75]]}
            spike = 9.0 if step == 137 else 0.0
            metrics.write(
                "step", step=step, loss=5 / step**0.2 + spike, grad_norm=1.0, tokens_per_s=1e4, mfu=0.4, watts=300.0,
                learning_rate=1e-3, tokens=100 * step, **more,
            )  # fmt: skip
            if step == 100:
                metrics.write("straggler", step=step, rank=3, host="node-3", why="its products take 2.0 times as long")
                metrics.write("resume", step=step, batches_left_out=0)
                metrics.write("evaluation", step=step, loss=2.5)
            if step == 200:
                metrics.write("resume", step=step, batches_left_out=12)
        metrics.write("stopped", step=300)
    (folder / "time.jsonl").write_text(
        '{"began": 1, "time": 2, "step": 0}\n{"time": 9, "step": 300, "stepping": 5.5, "saving": 1, "evaluating": 0}\n'
    )
    (folder / "run.toml").write_text("tokens = 40000\n")
    write_json(folder / "failures" / "0.json", {"sentence": "The run failed twice in the same way: a bus error.", "final": False})
    documents.write(folder / documents.TRAJECTORY, {"params": 10, "tokens": 40000, "moments": moments(1.6)})
    with MetricsWriter(home / "g1" / "ladder" / "1e9-w24") as metrics:
        metrics.write("step", step=1, loss=3.0, tokens_per_s=10.0)
        metrics.write("step", step=2, loss=None, tokens_per_s=10.0)
        metrics.write("end", step=2, finished=True, loss=2.75)
    return home


def test_the_document_of_a_run_says_what_its_files_say(runs):
    assert names(runs) == ["", "g1", "g1/ladder/1e9-w24"]
    overview = {row.name: row for row in document(runs, "").runs}
    assert overview["g1"].state == "stopped" and overview["g1/ladder/1e9-w24"].state == "finished"
    run = document(runs, "g1")
    assert run.rows == 300 and run.x == list(range(1, 301)) and run.latest["step"].value == 300
    assert run.planned_steps.value == 400 and run.band.x == [40, 160, 280, 400]
    assert run.forecast.value == 1.6 and (run.forecast.low, run.forecast.high) == (0.8, 3.2)
    assert run.evaluations == {"x": [100], "loss": [2.5]}
    assert run.spent["counted_s"].value == read_goodput(runs / "g1" / "time.jsonl")["counted_s"] == 5.5
    said = [(fault.step and fault.step.value, fault.what, fault.done) for fault in run.faults]
    assert [step for step, *_ in said] == [100, 100, 200, 300, None]
    assert "Process 3 on node-3" in said[0][1] and "skipped 12 batches" in said[2][2] and "a bus error" in said[4][1]
    assert run.experts.x[0] == 1 and run.experts.x[-1] == 300 and run.experts.loads[0][0][-1] == 500
    assert run.experts.loads[1] == [[250] * len(run.experts.x), [750] * len(run.experts.x)]
    assert {"g1/run.jsonl", "g1/time.jsonl", "g1/trajectory.json"} <= set(run.files)


def test_a_part_of_a_run_is_asked_for_by_its_steps(runs):
    client = TestClient(make_app(ConsoleOptions(home=runs)), base_url="http://127.0.0.1:8765")
    part = client.get("/data/run/g1.json", params={"from": 130, "to": 140}).json()
    assert part["x"] == list(range(130, 141)) and max(part["fields"]["loss"]["mean"]) > 9
    assert client.get("/data/run/g1.json").json()["x"] == list(range(1, 301))
    assert client.get("/data/run/g1.json", params={"from": "x"}).status_code == 400
    for name in ("../secret", "g1/ladder", "nothing", "%2e%2e"):
        assert client.get(f"/data/run/{name}.json").status_code == 404


def test_a_damaged_forecast_is_a_sentence(runs, tmp_path):
    with MetricsWriter(tmp_path / "r") as metrics:
        metrics.write("step", step=1, loss=3.0)
    (tmp_path / "r" / documents.TRAJECTORY).write_text('{"moments": [{"share": "a"}]}')
    with pytest.raises(TenfoldError, match=r"trajectory\.json is damaged"):
        document(tmp_path, "r")


def test_no_link_leads_out_of_the_home_and_odd_records_are_shown(tmp_path):
    home, secret = tmp_path / "home", tmp_path / "secret.json"
    secret.write_text('{"event": "step", "step": 1, "loss": 0.777, "sentence": "0.777"}\n')
    odd = {"expert_load_max": 1.0, "expert_load": [[0.5], [0.25, 0.25]]}
    with MetricsWriter(home / "r") as metrics:
        metrics.write("start", hyperparameters=3)
        metrics.write("step", step=1, loss=3.0, **odd)
    (home / "linked").mkdir()
    (home / "r" / "failures").mkdir()
    for link in ("linked/run.jsonl", "r/said.log", "r/failures/0.json"):
        (home / link).symlink_to(secret)
    (home / "out").symlink_to(tmp_path)
    assert names(home) == ["", "r"]
    run = document(home, "r")
    assert run.experts is None and run.rows == 1 and "0.777" not in repr(run)


def test_an_empty_home_says_the_command(tmp_path):
    assert document(tmp_path, "").empty.startswith("tenfold train")


def test_the_console_is_there_without_pytorch():
    """It starts at once, and memory is left for runs."""
    program = "import sys, tenfold.console.app; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_following_a_run_gives_each_new_step_once(tmp_path):
    folder = tmp_path / "r"
    with MetricsWriter(folder) as metrics:
        metrics.write("step", step=1, loss=3.0)
        follow = Follow(tmp_path, "r")
        first = follow()
        assert (first["after"], first["x"], first["state"]) == (1, [], "interrupted") and follow() is None
        metrics.write("step", step=2, loss=2.0)
        metrics.write("step", step=3, loss=1.0)
        news = follow()
        assert (news["after"], news["rows"], news["x"]) == (1, 3, [2, 3]) and news["fields"]["loss"]["mean"] == [2, 1]
        assert news["latest"]["loss"].value == 1 and follow() is None
        metrics.write("evaluation", step=3, loss=1.5)
        assert follow()["events"] is True
    with MetricsWriter(folder, resume_step=1) as metrics:
        metrics.write("stopped", step=1)
    news = follow()
    assert news["replaced"] != first["replaced"] and news["rows"] == 1 and news["state"] == "stopped"


def test_a_process_that_does_not_hold_the_lock_is_never_stopped(tmp_path):
    with MetricsWriter(tmp_path / "r") as metrics:
        metrics.write("step", step=1, loss=3.0)
    with pytest.raises(TenfoldError, match="does not train now"):
        stop(tmp_path / "r")
    lock = tmp_path / "r" / ".training.lock"
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        for host, sentence in ((socket.gethostname(), "is not known"), ("elsewhere", "trains on elsewhere")):
            with one_at_a_time(lock, "training"):
                lock.write_text(json.dumps({"process": bystander.pid, "host": host}))
                with pytest.raises(TenfoldError, match=sentence):
                    stop(tmp_path / "r")
                with pytest.raises(TenfoldError, match="trains already"):
                    resume(tmp_path / "r")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_what_cannot_go_on_is_not_resumed(runs, tmp_path):
    with pytest.raises(TenfoldError, match="has finished"):
        resume(runs / "g1" / "ladder" / "1e9-w24")
    with MetricsWriter(tmp_path / "r") as metrics:
        metrics.write("step", step=1, loss=3.0)
    with pytest.raises(TenfoldError, match=r"no run\.toml"):
        resume(tmp_path / "r")


def until(true, limit_s=240):
    end = time.monotonic() + limit_s
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


@pytest.mark.slow
def test_an_operator_stops_a_real_run_and_goes_on_with_it(corpus, tmp_path):
    home, folder = tmp_path / "home", tmp_path / "home" / "run"
    home.mkdir()
    table = "tokens = 3000000\nthreads = 1\n[model]\nwidth = 16\n[data]\nseq_len = 64\nmax_epochs = 1000\n"
    (home / "run.toml").write_text(f'{table}corpus = "{corpus.directory}"\n[log]\nevery = 1\n')
    command = [sys.executable, "-m", "tenfold", "train", str(home / "run.toml"), "--out", str(folder), "--home", str(home)]
    trained = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    key = make_key(tmp_path / "keys.json", "root", operator=True)
    options = ConsoleOptions(home=home, keys=tmp_path / "keys.json")
    client = TestClient(make_app(options), base_url="http://127.0.0.1:8765")
    allowed = {"Authorization": f"Bearer {key}"}

    def shown():
        return client.get("/data/run/run.json").json() if (folder / "run.jsonl").exists() else {"rows": 0}

    try:
        until(lambda: trained.poll() is None and shown()["rows"] > 3)
        assert shown()["state"] == "training"
        assert client.post("/runs/stop/run").status_code in (401, 403)
        assert client.post("/runs/stop/run", headers=allowed).json()["done"].startswith(f"Process {trained.pid}")
        assert "Stopped and saved" in trained.communicate(timeout=240)[1]
        before = shown()
        assert before["state"] == "stopped"
        assert client.post("/runs/resume/run").status_code in (401, 403)
        assert client.post("/runs/resume/run", headers=allowed).status_code == 200
        until(lambda: shown()["state"] == "training" and shown()["rows"] > before["rows"])
        assert "resume" in [row["event"] for row in read_lines(folder / "run.jsonl")]
        client.post("/runs/stop/run", headers=allowed)
        until(lambda: shown()["state"] == "stopped" and "Stopped and saved" in (folder / "resume.log").read_text())
    finally:
        trained.kill()
        trained.communicate()


@pytest.fixture(scope="module")
def runs_address(runs):
    with console(runs) as url:
        yield url


@pytest.mark.slow
@needs_chromium[0]
@needs_chromium[1]
def test_the_page_shows_a_run_follows_it_and_zooms(runs, runs_address, browser):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with opened(browser, f"{runs_address}#/run/g1?from=1&to=200&with=g1%252Fladder%252F1e9-w24", width=360) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        captions = page.locator("figcaption").all_inner_texts()
        assert {"Loss", "MFU", "Power", "Speed", "Learning rate", "Gradient norm", "Where the time went"} <= set(captions)
        legend = page.locator("figure").first.locator(".legend li").all_inner_texts()
        assert legend == ["g1", "g1/ladder/1e9-w24", "forecast, 80 %", "validation"]
        assert "node-3" in page.inner_text("main") and page.locator("svg.heat rect").count() == 2 * 120
        step = page.locator("dl a.figure").first
        assert (step.get_attribute("data-file"), step.get_attribute("data-value")) == ("g1/run.jsonl", "300")
        assert axe.run(page).violations_count == 0
        page.locator(".plot").first.focus()
        page.keyboard.press("0")
        page.wait_for_url(lambda url: "from=" not in url)
        with (runs / "g1" / "run.jsonl").open("a") as stream:
            stream.write('{"event": "step", "step": 301, "loss": 1.25, "tokens_per_s": 10000.0}\n')
        page.wait_for_selector("a.figure[data-key$=':step'][data-value='301']")
