"""What the console says of a home: every figure as it stands in its file, the pictures' data, alerts, exports."""

import json
import shutil
import time

import msgspec
import pytest
from console_home import check_figures, climb, judged, lines, parsed

from tenfold.console.alerts import STALLED_S, alerts
from tenfold.console.commands import start
from tenfold.console.document import Figure, figure, figures_in, value_at
from tenfold.console.export import export
from tenfold.console.options import ConsoleOptions
from tenfold.console.runs.find import TAIL
from tenfold.console.site import all_views, document, documents, inside, is_public
from tenfold.scale.commands import PointOptions
from tenfold.scale.law import Law
from tenfold.scale.outlook_commands import Ahead, worth
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import one_at_a_time
from tenfold.spec.forecasts import read_forecasts

pytest_plugins = ["console_home"]


def test_every_figure_of_every_view_is_the_value_in_its_file(home):
    assert check_figures(home) > 100


def test_intervals_are_those_of_the_files(home):
    row = next(one for one in document(all_views()["generations"], home, "").generations if one.name == "g1")
    assert [row.forecast.low, row.forecast.high] == parsed(home / "g1/forecast.json", "loss_bits_per_byte.intervals.80")
    said = document(all_views()["generations"], home, "").record
    for shown, one in zip(said.rows, read_forecasts(home), strict=True):
        assert (shown.forecast.low, shown.forecast.value, shown.forecast.high) == tuple(
            one.forecast.quantiles[i] for i in (1, 3, 5)
        )
        assert shown.inside is one.inside_80
    assert said.came == sum(one.measured is not None for one in read_forecasts(home))


def test_the_ladder_has_every_point_once_and_the_newest_law(home):
    shown = document(all_views()["generations"], home, "").ladder
    rows = {tuple(row.split(",")[2:]) for name in ("g1", "g2") for row in (home / name / "points.csv").read_text().splitlines()[1:]}
    assert sorted(zip(shown.measured.flops, shown.measured.loss, strict=True)) == sorted((float(c), float(y)) for c, y in rows)
    law = Law.from_dict(json.loads((home / "g2" / "law.json").read_text()))
    assert shown.law.name == "g2"
    for i in (0, 11, -1):
        expected = law.predict(*law.optimum(shown.law.flops[i])[:2])
        assert [shown.law.loss[i], shown.law.low[i], shown.law.high[i]] == pytest.approx([expected.median, *expected.intervals[80]])
    assert shown.outcomes.loss == [
        parsed(home / name / "score.json", "scores.loss_bits_per_byte.measured") for name in ("g1", "g2")
    ]
    assert shown.arrow.flops == [shown.outcomes.flops[-1], shown.law.flops[-1]] and shown.arrow.loss[0] == shown.outcomes.loss[-1]


def test_the_lineage_says_what_went_into_what(home):
    edges = {(edge.source, edge.target) for edge in document(all_views()["generations"], home, "").lineage.edges}
    assert edges == {("stdlib", "g1"), ("stdlib", "g2"), ("g1", "g2"), ("g2", "chat-1"), ("feedback.db", "chat-1")}


def test_the_chance_that_it_pays_is_that_of_the_law_and_the_table_of_worth(home, capsys):
    shown = document(all_views()["generations"], home, "").next
    cost = parsed(home / "plan/plan.json", "cost.rent_usd.mid")
    reading = PointOptions(bits_per_byte=True)
    worth(home / "g2/points.csv", home / "worth.csv", step=cost, ahead=Ahead(generations=2), reading=reading, json=True)
    told = json.loads(capsys.readouterr().out)["generations"][-1]["chance"]
    assert shown.money.value == cost and shown.chance.probability.value == pytest.approx(told, abs=0.05)


def test_a_damaged_file_is_a_sentence_that_names_it_and_the_rest_is_shown(tmp_path, home):
    copy, view = tmp_path / "home", all_views()["generations"]
    shutil.copytree(home, copy, symlinks=True)
    for name in (
        "g1/forecast.json",
        "g1/score.json",
        "g1/points.csv",
        "g1/climb.json",
        "chat-1/gate.json",
        "circle.json",
        "plan/plan.json",
    ):
        whole = (copy / name).read_bytes()
        for damage in (b"{", b"[]", b'{"version": 1}', b"\xff", b""):
            (copy / name).unlink()
            (copy / name).write_bytes(damage)
            shown = document(view, copy, "")
            assert [row.name for row in shown.generations] == ["g1", "g2", "chat-1"] and shown.generations[1].measured
            if "/" in name:
                try:
                    document(view, copy, name.split("/")[0])
                except TenfoldError as error:
                    assert name in str(error) or "has no" in str(error)
        (copy / name).write_bytes(whole)


def test_an_empty_home_says_the_command(tmp_path):
    shown = document(all_views()["generations"], tmp_path, "")
    assert "tenfold climb" in shown.empty and shown.generations == [] and shown.next is None


def test_names_with_dots_and_lists_are_found_within_json(tmp_path):
    (tmp_path / "a.json").write_text('{"x.y": {"z": [1, {"p.q": 2}]}}')
    (tmp_path / "b.jsonl").write_text('{"a": 1}\n{"a": {"b": null}}\n')
    assert value_at(tmp_path / "a.json", "x.y.z.1.p.q") == 2
    assert figure(tmp_path, "b.jsonl", "2:a.b") == Figure(None, "b.jsonl", "2:a.b")
    for file, key in (("a.json", "x"), ("a.json", "x.y.z.7"), ("b.jsonl", "3:a"), ("b.jsonl", "a"), ("c.json", "a")):
        with pytest.raises(TenfoldError):
            value_at(tmp_path / file, key)


def test_a_damaged_record_of_forecasts_is_a_note(tmp_path):
    (tmp_path / "forecasts.jsonl").write_text('{"forecast": {"key": "climb/g1/loss"}}\n')
    shown = document(all_views()["generations"], tmp_path, "")
    assert shown.record.rows == [] and "forecasts.jsonl is damaged" in shown.notes[0]


def test_a_run_with_long_lines_has_alerts_and_a_row(tmp_path):
    """As a step of many experts has."""
    folder = climb(tmp_path, "g1", 2e11, finished=False)
    last = lines(folder / "run.jsonl")[-1]
    line = json.dumps({"event": "step", **last, "step": 41, "expert_load": [[0.001] * 1000] * 30})
    assert len(line) > 2 * TAIL
    with (folder / "run.jsonl").open("a") as stream:
        stream.write(line + "\n")
    (stopped,) = alerts(tmp_path)
    assert "stopped at step 41" in stopped.sentence
    (row,) = (one for one in document(all_views()["run"], tmp_path, "").runs if one.name == "g1")
    assert row.step.value == 41 and row.state == "interrupted"


def test_alerts_of_a_run_that_was_stopped_or_stalls_and_of_a_gate(tmp_path):
    folder = climb(tmp_path, "g1", 2e11, finished=False)
    last = lines(folder / "run.jsonl")[-1]["time"]
    (stopped,) = alerts(tmp_path)
    assert "stopped at step 39" in stopped.sentence and f"tenfold resume {folder}" in stopped.sentence
    with one_at_a_time(folder / ".training.lock", "training"):
        assert alerts(tmp_path, now=lambda: last + STALLED_S - 1) == []
        (stalls,) = alerts(tmp_path, now=lambda: last + STALLED_S + 1)
    assert stalls.kind == "run" and "stalls" in stalls.sentence and stalls.place == "#/run/g1"
    (folder / "run.jsonl").write_text((folder / "run.jsonl").read_text() + json.dumps({"event": "end", "time": time.time()}) + "\n")
    assert alerts(tmp_path) == []
    judged(folder, passed=False)
    (refused,) = alerts(tmp_path)
    assert refused.kind == "gate" and "not better beyond noise" in refused.sentence


def test_an_export_has_all_documents_and_their_files_and_nothing_personal(home, tmp_path, capsys):
    out = tmp_path / "report"
    start(options=ConsoleOptions(home=home), export=out, json=True)
    assert json.loads(capsys.readouterr().out) == {"folder": str(out)}
    for view, name, made in documents(all_views(), home, private=False):
        path = out / "data" / f"{view.name}/{name}.json" if name else out / "data" / f"{view.name}.json"
        assert json.loads(path.read_text()) == json.loads(msgspec.json.encode(made))
        for one in figures_in(made):
            if is_public(one.file):
                assert (out / "files" / one.file).read_bytes() == (home / one.file).read_bytes()
    assert not json.loads((out / "data" / "console.json").read_text())["live"]
    assert "Content-Security-Policy" in (out / "index.html").read_text()
    written = {str(path.relative_to(out / "files")) for path in (out / "files").rglob("*") if path.is_file()}
    assert not written & {"feedback.db", "chat-1/data/train.jsonl", "chat-1/lineage.json"}
    assert not [path for path in out.rglob("*") if path.is_file() and b"something personal" in path.read_bytes()]
    with pytest.raises(TenfoldError, match="there already"):
        export(home, out)


def test_an_export_of_a_missing_home_is_refused(tmp_path):
    with pytest.raises(TenfoldError, match="no directory"):
        export(tmp_path / "missing", tmp_path / "out")


@pytest.mark.parametrize("file", ["../secret.json", "out/secret.json", "/etc/passwd", "", ".", "g1", "a\0b", "x" * 5000, "\ud800"])
def test_nothing_outside_the_home_is_a_file_of_it(tmp_path, file):
    home = tmp_path / "home"
    (home / "g1").mkdir(parents=True)
    (tmp_path / "secret.json").write_text("{}")
    (home / "out").symlink_to(tmp_path)
    assert inside(home, file) is None
    (home / "g1" / "a.json").write_text("{}")
    assert inside(home, "g1/a.json") == (home / "g1" / "a.json").resolve()
