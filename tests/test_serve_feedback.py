"""Feedback: what is kept, what is exported, what is deleted, and that a kill loses nothing that was acknowledged."""

import json
import random
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from tenfold.serve.feedback.export import export
from tenfold.serve.feedback.feedback import Feedback, corrections, pairs, ratings, responses
from tenfold.spec.errors import TenfoldError

ASK = [{"role": "user", "content": "Name a river."}]


@pytest.fixture
def store(tmp_path):
    return Feedback(f"sqlite:///{tmp_path / 'f.db'}")


def keep(store, name, text, user="ann", messages=ASK, finish="stop"):
    row = {"id": name, "model": "Tiny", "checkpoint": "0" * 64, "messages": messages, "text": text, "token_ids": [1, 2]}
    store.add_response({**row, "logprobs": None, "sampling": {}, "finish_reason": finish, "prompt_tokens": 3, "ttft_ms": 1.0}, user)


def rows(store, format, tmp_path, **options):
    made = export(store, format, tmp_path / "out.jsonl", test_share=0, **options)
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert len(lines) == made.train
    return [json.loads(line) for line in lines], made.left_out


def test_dpo_has_winners_corrections_and_siblings_alone(store, tmp_path):
    for name, text in {"a": "Rhine", "b": "Alps", "c": "Nile", "d": "I am Tiny: Po"}.items():
        keep(store, name, text)
    keep(store, "cut", "The longest of", finish="length")
    store.compare("a", "b", "ann", "a", blind=True, position_swapped=True)
    store.compare("c", "b", "bob", "b", blind=False, position_swapped=False)
    store.compare("a", "c", "bob", "tie", blind=True, position_swapped=False)
    store.compare("a", "d", "bob", "a", blind=True, position_swapped=False)
    store.compare("cut", "a", "bob", "a", blind=False, position_swapped=False)
    store.correct("b", "ann", "Danube")
    store.rate("c", "cleo", 1, [], None)
    store.rate("b", "cleo", -1, ["wrong"], "no river")
    found, left = rows(store, "dpo", tmp_path)
    assert [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in found] == [
        ("Rhine", "Alps"),
        ("Alps", "Nile"),
        ("Danube", "Alps"),
        ("Nile", "Alps"),
    ]
    assert all(r["prompt"] == ASK and set(r) == {"prompt", "chosen", "rejected"} for r in found)
    assert left == {"no winner": 1, "an answer names its model": 1, "cut off": 1}


def test_the_last_thumb_counts_and_repeats_do_not(store, tmp_path):
    keep(store, "a", "Rhine")
    keep(store, "same", "Rhine")
    store.rate("a", "ann", -1, [], None)
    store.rate("a", "ann", 1, [], None)
    store.rate("same", "ann", 1, [], None)
    expected = {"prompt": ASK, "completion": [{"role": "assistant", "content": "Rhine"}], "label": True}
    found, left = rows(store, "kto", tmp_path)
    assert found == [expected] and left == {"repeated": 1}
    assert rows(store, "sft", tmp_path)[0] == [{"messages": ASK + expected["completion"]}]


def test_one_user_cannot_flood_and_is_in_one_part_alone(store, tmp_path):
    for i in range(60):
        keep(store, str(i), f"River {i}")
        store.rate(str(i), f"user {i % 12}", 1, [], None)
    found, left = rows(store, "kto", tmp_path, per_user_day=3)
    assert len(found) == 36 and left == {"over the daily limit of a user": 24}
    made = export(store, "kto", tmp_path / "split.jsonl", test_share=0.5)
    train, test = (
        {json.loads(line)["completion"][0]["content"] for line in (tmp_path / f).read_text().splitlines()}
        for f in ("split.jsonl", "split.test.jsonl")
    )
    assert (len(train), len(test)) == (made.train, made.test) and train and test
    user_of = {f"River {i}": i % 12 for i in range(60)}
    assert not {user_of[t] for t in train} & {user_of[t] for t in test}


def test_a_row_that_was_left_out_does_not_make_another_users_row_a_repeat(store, tmp_path):
    for name, text in {"a": "Nile", "b": "Rhine", "c": "Rhine"}.items():
        keep(store, name, text)
    for name, user in (("a", "ann"), ("b", "ann"), ("c", "bob")):
        store.rate(name, user, 1, [], None)
    found, left = rows(store, "kto", tmp_path, per_user_day=1)
    assert [r["completion"][0]["content"] for r in found] == ["Nile", "Rhine"]
    assert left == {"over the daily limit of a user": 1}


def test_comparisons_are_of_answers_to_the_same(store):
    keep(store, "a", "Rhine")
    keep(store, "x", "Fly", messages=[{"role": "user", "content": "Name an insect."}])
    with pytest.raises(TenfoldError, match="same conversation"):
        store.compare("a", "x", "ann", "a", False, False)
    with pytest.raises(TenfoldError, match="no such stored answer"):
        store.compare("a", "gone", "ann", "a", False, False)
    with pytest.raises(TenfoldError, match="no such stored answer"):
        store.rate("gone", "ann", 1, [], None)


def test_nothing_of_a_deleted_user_is_left_in_the_file(store, tmp_path):
    keep(store, "a", "Rhine of ann", "ann-the-user")
    keep(store, "b", "Alps", "bob")
    store.rate("a", "bob", 1, [], None)
    store.rate("b", "ann-the-user", 1, ["secret reason"], None)
    store.compare("b", "a", "bob", "a", False, False)
    assert store.delete_user("ann-the-user") == 4
    assert [r.id for r in store.rows(responses)] == ["b"] and not list(store.rows(ratings))
    store._engine.dispose()  # the last connection writes the log into the file
    data = b"".join(f.read_bytes() for f in tmp_path.iterdir())
    assert b"Alps" in data and b"Rhine of ann" not in data and b"secret reason" not in data and b"ann-the-user" not in data


WRITER = """
import sys
from tenfold.serve.feedback.feedback import Feedback
store, start = Feedback(sys.argv[1]), int(sys.argv[2])
for i in range(start, start + 10**6):
    row = dict(id=str(i), model="m", checkpoint="0", messages=[], text="t" * 300, token_ids=[1], logprobs=None)
    store.add_response({**row, "sampling": {}, "finish_reason": "stop", "prompt_tokens": 1, "ttft_ms": None}, "ann")
    store.rate(str(i), "ann", 1, [], None)
    print(i, flush=True)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path, kills):
    url, chance, acknowledged = f"sqlite:///{tmp_path / 'f.db'}", random.Random(0), []
    for k in range(kills):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, url, str(k * 10**6)], stdout=subprocess.PIPE, text=True)
        lines = [writer.stdout.readline() for _ in range(chance.randrange(1, 40))]
        writer.send_signal(signal.SIGKILL)
        acknowledged += [line.strip() for line in lines + writer.stdout.readlines() if line.endswith("\n")]
        writer.wait()
    store = Feedback(url)
    assert set(acknowledged) <= {r.id for r in store.rows(responses)}
    assert set(acknowledged) <= {r.response_id for r in store.rows(ratings)}


def test_exports_load_as_trl_reads_them(store, tmp_path):
    keep(store, "a", "Rhine")
    keep(store, "b", "Alps")
    store.compare("a", "b", "ann", "a", True, False)
    (row,), _ = rows(store, "dpo", tmp_path)
    # TRL's `is_conversational`: lists of messages with a role and content under these names.
    assert all(isinstance(row[k], list) and row[k][0].keys() >= {"role", "content"} for k in ("prompt", "chosen", "rejected"))


def test_an_export_reads_one_moment_whatever_is_written_meanwhile(store, tmp_path):
    other = Feedback(f"sqlite:///{tmp_path / 'f.db'}")
    keep(store, "a", "Rhine")
    store.rate("a", "ann", 1, [], None)
    with store.snapshot() as kept:
        assert [row.id for row in kept.rows(responses)] == ["a"]
        keep(other, "b", "Nile", user="bob")
        other.rate("b", "bob", 1, [], None)
        other.correct("b", "bob", "Danube")
        other.delete_user("ann")
        assert [row.response_id for row in kept.rows(ratings)] == ["a"]
        assert not [*kept.rows(corrections), *kept.rows(pairs)] and [row.id for row in kept.rows(responses)] == ["a"]
    assert [row.response_id for row in store.rows(ratings)] == ["b"]


def test_many_open_a_new_database_at_once(tmp_path):
    for i in range(3):
        at_once = Barrier(8)

        def opened(_, file=tmp_path / f"{i}.db", at_once=at_once):
            at_once.wait()
            return Feedback(f"sqlite:///{file}").user_hash("ann")

        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(opened, range(8)))) == 1


@pytest.mark.parametrize("format", ["dpo", "sft"])
def test_only_the_last_correction_of_a_user_is_data_and_it_must_say_something_new(store, tmp_path, format):
    for name in ("a", "b", "c"):
        keep(store, name, "Alps")
    for name, text in (("a", "Rhine"), ("a", "The Rhine."), ("b", "Nile"), ("b", " \n"), ("c", " Alps ")):
        store.correct(name, "ann", text)
    store.correct("a", "bob", "Danube")
    found, left = rows(store, format, tmp_path)
    said = [row["chosen"][0]["content"] if format == "dpo" else row["messages"][-1]["content"] for row in found]
    assert sorted(said) == ["Danube", "The Rhine."] and left == {"nothing was corrected": 2}


def test_a_database_that_is_not_there_is_not_made_for_an_export(tmp_path):
    with pytest.raises(TenfoldError, match="no feedback database .*typo.db"):
        Feedback(f"sqlite:///{tmp_path / 'typo.db'}", create=False)
    assert not list(tmp_path.iterdir())
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE something (a)")
    with pytest.raises(TenfoldError, match="holds no feedback"):
        Feedback(f"sqlite:///{tmp_path / 'other.db'}", create=False)
    Feedback(f"sqlite:///{tmp_path / 'f.db'}")
    made = export(Feedback(f"sqlite:///{tmp_path / 'f.db'}", create=False), "kto", tmp_path / "new" / "folder" / "out.jsonl")
    assert made.train == made.test == 0 and (tmp_path / "new" / "folder" / "out.jsonl").exists()


def test_a_database_is_named_by_its_file_or_by_its_url(tmp_path):
    Feedback(str(tmp_path / "said.db")).delete_user("nobody")
    assert not Feedback(f"sqlite:///{tmp_path / 'said.db'}", create=False).users()
