"""Interactions: every form of table gives the same events, bad ones one sentence, and no split shows the future to the past."""

import json
import sqlite3

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.cli.commands import run
from tenfold.data.interactions.content import features, read_features
from tenfold.data.interactions.interactions import open_interactions
from tenfold.data.interactions.read import read_interactions
from tenfold.data.interactions.report import report
from tenfold.data.interactions.splits import Split, ends, rolling
from tenfold.data.interactions.synthetic import ClusterChain, Teacher, made
from tenfold.spec.errors import TenfoldError

ROWS = [("b", "x", 3), ("a", "y", 2), ("a", "z", 2), ("b", "y", 1), ("a", "x", 1), ("b", "z", 2)]
LEAVE_ONE_OUT = Split("leave-one-out")


def write_all(folder):
    """The same events in every form."""
    users, items, times = (list(column) for column in zip(*ROWS, strict=True))
    lines = {
        "t.csv": ["user,item,time", *(f"{u},{i},{t}" for u, i, t in ROWS)],
        "t.tsv": ["userId\tmovieId\ttimestamp", *(f"{u}\t{i}\t{t}" for u, i, t in ROWS)],
        "t.inter": ["user_id:token\titem_id:token\trating:float\ttimestamp:float", *(f"{u}\t{i}\t5\t{t}" for u, i, t in ROWS)],
        "ms.csv": ["user,item,time", *(f"{u},{i},{t * 1000 + 10**12}" for u, i, t in ROWS)],
        "text.csv": ["user,item,time", *(f"{u},{i},2020-01-0{t}T00:00:00" for u, i, t in ROWS)],
        "t.jsonl": [json.dumps({"user": u, "item": i, "time": t}) for u, i, t in ROWS],
        "ratings.dat": [f"{u}::{i}::5::{t}" for u, i, t in ROWS],
        "pairs.txt": [f"{u} {i}" for u, i, t in sorted(ROWS, key=lambda row: row[2])],
    }
    for name, rows in lines.items():
        (folder / name).write_text("\n".join(rows) + "\n")
    stamps = pa.array([t * 10**6 for t in times], pa.timestamp("us"))
    pa.parquet.write_table(pa.table({"user": users, "item": items, "time": stamps}), folder / "t.parquet")
    with sqlite3.connect(folder / "t.db") as base:
        base.execute("create table events (user text, item text, time integer)")
        base.executemany("insert into events values (?, ?, ?)", ROWS)
    base.close()
    return [str(folder / name) for name in (*lines, "t.parquet")] + [f"sqlite:///{folder / 't.db'}#events"]


def by_name(interactions):
    parts = np.split(interactions.items, interactions.offsets[1:-1])
    return sorted([interactions.names[token] for token in part] for part in parts)


def test_every_form_gives_the_same_histories_and_rows_of_one_time_keep_their_order(tmp_path):
    for source in write_all(tmp_path):
        found = open_interactions(source, tmp_path / "home", LEAVE_ONE_OUT)
        assert by_name(found) == [["x", "y", "z"], ["y", "z", "x"]], source
        assert found.vocab_size == 4 and (np.diff(found.times) >= 0).sum() >= 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("user,thing,time\n1,2,3\n", "no column 'item'"),
        ("user,item,time\n", "no rows"),
        ("user,item,time\n1,2,\n1,3,4\n", "empty field"),
        ("user,item,time\n1,2,noon\n", "no times"),
        ("user,item,time\n1,2,1e300\n", "no times"),
        ("user,item,time\n1,2,3\n1,2\n", "cannot be read"),
        ("user,item,time\n1,2,3\n1,3,4\n2,2,2\n", "three interactions"),
        ("user,item,time\n1,<start>,3\n1,3,4\n1,2,2\n", "an item called"),
    ],
)
def test_what_is_no_table_of_interactions_is_said_in_a_sentence(tmp_path, text, said):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(TenfoldError, match=said):
        open_interactions(str(tmp_path / "t.csv"), tmp_path, LEAVE_ONE_OUT)
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere.csv", "no file of interactions"),
        ("teacher:user=3", "no setting 'user'"),
        ("teacher:users=many", "must be numbers"),
        ("sqlite:///{}/none.db#events", "no table 'events'"),
        ("nosuch://base", "cannot be read"),
        ("{}/bad.dat", "Row 2 of .* has 3 fields"),
    ],
)
def test_a_source_that_is_not_there_is_said_in_a_sentence(tmp_path, source, said):
    (tmp_path / "bad.dat").write_text("1::2::3::4\n1::2::3\n")
    with pytest.raises(TenfoldError, match=said):
        open_interactions(source.format(tmp_path), tmp_path)


def test_copies_negative_ids_one_huge_user_and_one_item_are_taken(tmp_path):
    (tmp_path / "t.csv").write_text("user,item,time\n" + "-1,-5,1\n-1,-5,1\n-1,7,2\n-1,-5,3\n-1,7,4\n")
    found = open_interactions(str(tmp_path / "t.csv"), tmp_path, LEAVE_ONE_OUT)
    assert by_name(found) == [["-5", "7", "-5", "7"]]
    assert json.loads((found.directory / "report.json").read_text())["copies_left_out"] == 1
    (tmp_path / "one.csv").write_text("user,item,time\n" + "".join(f"u,only,{t}\n" for t in range(5)))
    assert open_interactions(str(tmp_path / "one.csv"), tmp_path, LEAVE_ONE_OUT).vocab_size == 2
    users = np.repeat([0, 1, 2], [200_000, 3, 3])
    pa.parquet.write_table(pa.table({"user": users, "item": users % 7, "time": np.arange(len(users))}), tmp_path / "huge.parquet")
    found = open_interactions(str(tmp_path / "huge.parquet"), tmp_path, LEAVE_ONE_OUT)
    assert report(found)["bots"] == 1 and "may be bots" in " ".join(report(found)["warnings"])
    assert len(found.held_out("test").targets) == 3
    assert found.batch(0, slice(None), batch_size=6, seq_len=10, seed=0).tokens.shape == (6, 10)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=12), min_size=1, max_size=8),
    st.floats(0.2, 1.0),
    st.floats(0.0, 1.0),
    st.floats(0.0, 0.5),
)
def test_nothing_of_a_temporal_split_comes_from_its_future(histories, begin, end, validation):
    times = np.concatenate([np.sort(history) for history in histories])
    offsets = np.cumsum([0, *map(len, histories)])
    end = max(begin, end)
    found = ends(Split("temporal", begin, end, min(begin, validation)), offsets, times)
    assert (found.training <= found.validation).all() and (found.validation <= found.test).all()
    place = np.arange(len(times)) - np.repeat(offsets[:-1], np.diff(offsets))
    part = [place < np.repeat(e, np.diff(offsets)) for e in (found.training, found.validation, found.test)]
    learned, validated, tested = times[part[0]], times[part[1] & ~part[0]], times[part[2] & ~part[1]]
    for before, after in ((learned, validated), (learned, tested), (validated, tested)):
        assert not len(before) or not len(after) or before.max() < after.min()
    assert not len(learned) or learned.max() < found.until


def test_rolling_cuts_test_each_later_event_once_and_only_known_items_have_tokens(tmp_path):
    rng = np.random.default_rng(0)
    table = {"user": rng.integers(0, 30, 2000), "item": np.arange(2000) // 5 + rng.integers(0, 30, 2000), "time": np.arange(2000)}
    pa.parquet.write_table(pa.table(table), tmp_path / "t.parquet")
    tested = []
    for split in rolling(8):
        found = open_interactions(str(tmp_path / "t.parquet"), tmp_path, split)
        known = {str(table["item"][i]) for i in found.times[found.training]}
        assert set(found.names[1:]) == known and (found.items[found.training] < found.vocab_size).all()
        queries = found.held_out("test")
        assert all(len(times) == 0 or times.max() < now for times, now in zip(queries.times, queries.now, strict=True))
        assert all((history < found.vocab_size).all() for history in queries.histories)
        tested += queries.now.tolist()
    assert sorted(tested) == list(range(1000, 2000))


def test_rows_are_a_pure_function_of_the_step_and_hold_nothing_that_is_held_out(tmp_path):
    data = open_interactions("synthetic", tmp_path, LEAVE_ONE_OUT)
    draw = {"batch_size": 100, "seq_len": 8, "seed": 3}
    whole, part = data.batch(7, slice(None), **draw), data.batch(7, slice(30, 50), **draw)
    assert all((a[30:50] == b).all() for a, b in zip(whole, part, strict=True))
    users = {tuple(h[:-2]): user for user, h in enumerate(np.split(data.items, data.offsets[1:-1]))}
    assert len(users) == 2000
    drawn = []
    for step in range(20):
        rows = data.batch(step, slice(None), **{**draw, "seq_len": 24})
        for tokens, targets, times, events in zip(*rows, strict=True):
            n = (targets >= 0).sum()
            drawn.append(users[tuple(targets[:n])])  # all of it, and nothing else
            assert tokens[0] == 0 and (tokens[1:n] == targets[: n - 1]).all() and events[0] == -1
            assert (times[1 : n + 1] == data.times[events[1] : events[1] + n]).all()
    assert sorted(drawn) == list(range(2000))  # an epoch


def test_what_is_known_of_items_becomes_features_of_words_or_vectors(tmp_path):
    rows = [("u", "p", t, "red shoe", [1.0, 0.0]) for t in range(3)] + [("v", "q", t, "blue shoe", [0.0, 2.0]) for t in range(3)]
    columns = dict(zip(("user", "item", "time", "item_title", "item_vector"), map(list, zip(*rows, strict=True)), strict=True))
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    found = open_interactions(str(tmp_path / "t.parquet"), tmp_path, LEAVE_ONE_OUT)
    f = read_features(found.directory, found.vocab_size)
    assert (f[0] == 0).all() and f.shape[0] == 3
    p, q = (f[found.names.index(name)] for name in "pq")
    assert (p[:-2] != q[:-2]).sum() == 2 and np.allclose([p[-2:], q[-2:]], np.eye(2) * 2**0.5)
    new = features(pa.table({"item": ["r"], "item_title": ["RED  shoe!"], "item_vector": [[3.0, 0.0]]}))
    assert np.allclose(new[0], p)
    with pytest.raises(TenfoldError, match="item_vector has values of the type struct"):
        features(pa.table({"item": ["r"], "item_vector": [{"x": 1.0}]}))


@pytest.mark.parametrize(
    ("name", "beside", "lines", "known"),
    [
        ("t.inter", "t.item", ["item_id:token\ttitle:token_seq", "x\tred", "y\tblue"], "title"),
        ("ratings.dat", "movies.dat", ["x::red::Drama", "y::blue::War"], "item_title"),
    ],
)
def test_another_table_of_items_beside_is_another_set_of_interactions(tmp_path, name, beside, lines, known):
    write_all(tmp_path)

    def opened():
        found = open_interactions(str(tmp_path / name), tmp_path / "home", LEAVE_ONE_OUT).directory
        table = pa.parquet.read_table(found / "items.parquet")
        return found, dict(
            zip(table["item"].to_pylist(), table[known].to_pylist(), strict=True)
        ) if known in table.column_names else {}

    seen = {opened()[0]: {}}
    for word in ("red", "green"):
        (tmp_path / beside).write_text("\n".join(lines).replace("red", word) + "\n")
        folder, titles = opened()
        assert folder not in seen and titles == {"x": word, "y": "blue", "z": None}
        seen[folder] = titles
    assert opened() == (folder, titles)


def test_made_interactions_follow_their_probabilities():
    for source in ("synthetic:users=400", "teacher:users=300,n_items=60,length=12"):
        generator = made(source)
        table = generator.table()
        items = np.array(table["item"].combine_chunks().indices).reshape(generator.users, generator.length)
        nats = table["nats"].to_numpy().reshape(items.shape)
        weights = generator.weights(items[:, :7])
        p = weights / weights.sum(1, keepdims=True)
        assert nats[:, 7] == pytest.approx(-np.log(p[np.arange(len(p)), items[:, 7]]), rel=1e-4)
        best = np.sort(p, 1)[:, -5:].sum(1)  # the five likeliest came as often as they should
        came = (p >= np.sort(p, 1)[:, -5:-4])[np.arange(len(p)), items[:, 7]]
        assert abs(came.mean() - best.mean()) < 4 * np.sqrt((best * (1 - best)).mean() / len(best))
    assert made("other") is None and isinstance(made("teacher"), Teacher) and isinstance(made("synthetic"), ClusterChain)


def test_the_report_says_what_leaks(tmp_path, capsys):
    run(["rank", "report", "synthetic", "--split", "leave-one-out", "--home", str(tmp_path)])
    assert "no such leak" in " ".join(capsys.readouterr().out.split())
    run(["rank", "report", "synthetic", "--home", str(tmp_path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["events"] == 40_000 and found["training_after_half_of_the_test"] == 0 and found["warnings"] == []


def test_a_database_without_rows_and_a_column_of_lists_are_said(tmp_path):
    with sqlite3.connect(tmp_path / "t.db") as base:
        base.execute("create table interactions (user text, item text, time integer)")
    base.close()
    with pytest.raises(TenfoldError, match="no rows"):
        read_interactions(f"sqlite:///{tmp_path / 't.db'}")
    pa.parquet.write_table(pa.table({"user": [[1]], "item": [1], "time": [1]}), tmp_path / "t.parquet")
    with pytest.raises(TenfoldError, match="column user"):
        read_interactions(str(tmp_path / "t.parquet"))
