"""The console's views of learning, feedback, ranking and recommendations: documents against their files, and changes as commands make
them."""

import json
import random
import sqlite3
import time
from importlib import resources
from importlib.util import find_spec

import numpy as np
import pytest
from chat_models import chat_model
from chat_page import needs_chromium, until
from console_home import console, opened
from fastapi.testclient import TestClient

from bench.rank.made import made_ranker
from tenfold.cli.commands import run
from tenfold.console.app import make_app
from tenfold.console.document import figures_in, value_at
from tenfold.console.options import ConsoleOptions
from tenfold.console.site import all_views, documents
from tenfold.learn.data import parts_of, read_people
from tenfold.learn.release import release, released
from tenfold.rank.events.store import Events
from tenfold.rank.explain import explain
from tenfold.rank.ranker import History, Ranker
from tenfold.serve.api.keys import make_key
from tenfold.serve.feedback.feedback import Feedback
from tenfold.spec.errors import TenfoldError

pytest_plugins = ["chat_page"]
AXE = "axe.run().then(result => result.violations.map(v => [v.id, v.nodes.map(n => n.html).slice(0, 3)]))"
PRIVATE = ("feedback", "recommendations")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tuned generation with the gate's verdict beside the one that it came from, and a ranker that was evaluated."""
    home = tmp_path_factory.mktemp("learned")
    chat_model(home / "old" / "model")
    rows = [{"messages": [{"role": "user", "content": f"Hello {i}"}, {"role": "assistant", "content": "Lima"}]} for i in range(40)]
    (home / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tune = ["learn", "sft", str(home / "old"), "--data", str(home / "chats.jsonl"), "--home", str(home), "--name", "chat-1"]
    run([*tune, "--steps", "3", "--batch-size", "2", "--seq-len", "64", "--json"])
    run(["learn", "gate", str(home / "chat-1"), "--against", str(home / "old"), "--json"])
    rng = random.Random(0)
    taken = [(user, rng.randrange(12), 1000 * user + n) for user in range(60) for n in range(8)]
    (home / "shop.csv").write_text("user,item,time\n" + "".join(f"u{u},i{i},{t}\n" for u, i, t in taken))
    run(
        ["rank", "train", str(home / "shop.csv"), "--home", str(home), "--epochs", "1", "--width", "16", "--seq-len", "8", "--json"]
    )
    run(["rank", "evaluate", str(home / "rank-shop"), "--json"])
    return home


@pytest.fixture
def judged(home, tmp_path):
    """A home of its own in which the gate lets chat-1 pass."""
    verdict = json.loads((home / "chat-1" / "gate.json").read_text())
    for name in ("old", "chat-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").symlink_to(home / name / "model")
    verdict |= {"passed": True, "new": str(tmp_path / "chat-1"), "old": str(tmp_path / "old")}
    (tmp_path / "chat-1" / "gate.json").write_text(json.dumps(verdict))
    return tmp_path


def client(home, **options):
    return TestClient(make_app(ConsoleOptions(home, **options)), base_url="http://127.0.0.1:8765")


def said(home, users=40):
    """What people say: two answers each, thumbs with reasons, a correction, a comparison; of two models, over three days."""
    store, rng = Feedback(f"sqlite:///{home / 'feedback.db'}", bytes(32)), random.Random(1)
    hashes = [json.loads((home / "chat-1" / "gate.json").read_text())["hashes"][which] for which in ("new", "old")]
    row = {"model": "m", "token_ids": [1], "sampling": {}, "prompt_tokens": 3}
    for i in range(users):
        messages = [{"role": "user", "content": f"Question {i}?"}]
        for n in range(2):
            ended = "length" if i == 3 and n else "stop"
            answer = {**row, "id": f"{i}-{n}", "messages": messages, "text": f"Answer {n} to {i}", "finish_reason": ended}
            store.add_response({**answer, "checkpoint": hashes[i % 2]}, f"user-{i}")
        up = rng.random() < (0.9 if i % 2 == 0 else 0.2)
        store.rate(f"{i}-0", f"user-{i}", 1 if up else -1, [] if up else ["too short", "wrong"][: 1 + i % 2], None)
    store.correct("0-1", "user-0", "A better answer")
    store.compare("1-0", "1-1", "user-1", "a", True, False)


def test_every_figure_of_the_public_views_stands_in_its_file(home):
    views = {name: view for name, view in all_views().items() if name in ("learn", "rank")}
    made = {(view.name, name): document for view, name, document in documents(views, home, private=True)}
    assert set(made) == {("learn", ""), ("learn", "chat-1"), ("rank", ""), ("rank", "rank-shop")}
    for document in made.values():
        for one in figures_in(document):
            assert one.value == value_at(home / one.file, one.key)
    checks = json.loads((home / "chat-1" / "gate.json").read_text())["checks"]
    shown = {check.name: check for check in made["learn", "chat-1"].checks}
    assert {check["name"]: check["passed"] for check in checks} == {name: one.passed.value for name, one in shown.items()}
    better = next(check for check in checks if check["name"] == "better")
    assert (shown["better"].measured.low, shown["better"].measured.high) == tuple(better["interval"])
    low, high = (f"{end:+.2f}" for end in better["interval"])
    assert f"{low} to {high}" in better["says"]


def test_an_empty_home_says_what_to_run(tmp_path):
    views = [view for name, view in all_views().items() if name in ("learn", "rank", *PRIVATE)]
    assert len(views) == 4
    for view in views:
        (command,) = (view.document(tmp_path, name).empty for name in view.names(tmp_path))
        assert command.startswith("tenfold ")


@pytest.mark.parametrize("text", ["{}", '{"passed": true, "checks": [{}]}', '{"passed": true, "checks": [], "test": {}}'])
def test_a_damaged_verdict_is_a_sentence_that_names_it(tmp_path, text):
    (tmp_path / "chat-1").mkdir()
    (tmp_path / "chat-1" / "gate.json").write_text(text)
    with pytest.raises(TenfoldError, match=r"gate\.json"):
        all_views()["learn"].document(tmp_path, "chat-1")


def test_feedback_is_counted_as_the_database_has_it(judged):
    said(judged)
    arrived = client(judged).get("/data/feedback.json").json()["arrived"]
    with sqlite3.connect(judged / "feedback.db") as database:
        count = lambda asked: database.execute(f"select count(*) from {asked}").fetchone()[0]  # noqa: E731
        assert arrived["totals"] == {
            "answers": count("responses"), "good": count("ratings where value > 0"), "bad": count("ratings where value < 0"),
            "corrections": count("corrections"), "comparisons": count("pairs"),
        }  # fmt: skip
        assert arrived["users"] == count("(select distinct user_hash from responses)")
        reasons = dict(database.execute("select each.value, count(*) from ratings, json_each(reasons) each group by 1"))
    assert dict(map(tuple, arrived["reasons"])) == reasons and set(reasons) == {"too short", "wrong"}
    assert {kind: sum(days) for kind, days in arrived["kinds"].items()} == arrived["totals"]
    assert arrived["days"][-1] == int(time.time() // 86400)


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto"])
def test_the_next_set_is_what_the_next_generation_would_be_made_of(judged, tmp_path, kind):
    said(judged)
    shown = client(judged).get("/feedback/next", params={"kind": kind}).json()
    if all(shown["rows"].values()):
        files = parts_of(str(judged / "feedback.db"), judged / "next" / "data", 0.2, kind)
        assert shown["rows"] == {part: len(file.read_text().splitlines()) for part, file in files.items()}
        people = read_people(judged / "next" / "data")
        assert shown["left_out"] == people["left_out"] and shown["users"] == {p: len(u) for p, u in people["users"].items()}
    else:
        assert kind == "dpo" and sum(shown["rows"].values()) == 2  # one correction and one comparison
    assert not (judged / "data").exists()


def test_release_trial_and_rollback_are_those_of_the_commands(judged):
    said(judged)
    api = client(judged)
    assert api.post("/learn/release", json={"name": "chat-1", "share": 0.5}).status_code == 200
    assert released(judged)["candidate"]["share"] == 0.5
    since = released(judged) | {"candidate": released(judged)["candidate"] | {"since": 0.0}}
    (judged / "release.json").write_text(json.dumps(since))  # what was said before counts
    trial = api.get("/data/feedback.json").json()["trial"]
    assert trial["wins"] > trial["losses"] and trial["candidate"]["users"] == trial["released"]["users"] == 20
    last = trial["course"][-1]
    assert [last["low"], last["high"]] == trial["wins_interval"] and len(trial["course"]) == trial["wins"] + trial["losses"] + 1
    overview = api.get("/data/learn.json").json()
    assert overview["releases"][0]["candidate"] == "chat-1" and overview["generations"][0]["state"] == "tried on 50%"
    assert api.post("/learn/rollback", json={}).json() == {"in_service": "old"}
    assert "candidate" not in released(judged)
    assert api.post("/learn/release", json={"name": "chat-1"}).json() == {"in_service": "chat-1"}
    assert [one["path"] for one in released(judged)["before"]] == [str(judged / "old")]
    refused = api.post("/learn/release", json={"name": "../../etc"})
    assert refused.status_code == 404 and "no tuned generation" in refused.json()["error"]["message"]
    with pytest.raises(Exception, match="in service already"):
        release(judged / "chat-1", judged, 0.5)


def test_what_is_personal_and_what_changes_needs_the_key_of_an_operator(judged, tmp_path_factory):
    said(judged, 4)
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    keys = {role: make_key(file, role, operator=role == "operator") for role in ("user", "operator")}
    api = client(judged, keys=file)
    asked = [
        ("GET", "/data/feedback.json", None), ("GET", "/feedback/next?kind=sft", None), ("GET", "/data/recommendations.json", None),
        ("POST", "/learn/release", {"name": "chat-1"}), ("POST", "/learn/rollback", {}),
        ("POST", "/recommendations/explain", {"ranker": "a", "store": "b"}),
    ]  # fmt: skip
    for method, path, body in asked:
        for key, status in ((None, 403), (keys["user"], 403), ("wrong", 401)):
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            assert api.request(method, path, json=body, headers=headers).status_code == status, (path, key)
    operator = {"authorization": f"Bearer {keys['operator']}"}
    assert api.get("/data/feedback.json", headers=operator).status_code == 200
    there = {**operator, "origin": "https://example.org"}
    assert api.post("/learn/release", json={"name": "chat-1"}, headers=there).status_code == 403
    assert api.post("/learn/release", json={"name": "chat-1"}, headers={**operator, "host": "evil.example"}).status_code == 403
    assert not (judged / "release.json").exists()
    assert api.get("/files/feedback.db", headers=operator).status_code == 404
    assert api.get("/data/learn.json").status_code == 200


def test_a_recommendation_is_explained_by_what_its_score_is_without_each_item(tmp_path):
    ranker = Ranker.load(made_ranker(tmp_path / "a", 30, 16, 6))
    history = History((3, 9, 3, 17))
    found = explain(ranker, history, k=5)
    scores = ranker.score([history, History((9, 17)), History((3, 3, 17)), History((3, 9, 3))])
    best = [i for i in np.argsort(-scores[0]) if i not in (0, 3, 9, 17)][:5]
    assert [one.item for one in found] == [ranker.names[i] for i in best]
    for one, token in zip(found, best, strict=True):
        effects = {ranker.names[t]: scores[0, token] - scores[row, token] for row, t in ((1, 3), (2, 9), (3, 17))}
        assert {reason.item: reason.effect for reason in one.reasons} == pytest.approx(effects, abs=1e-4)
        assert [abs(r.effect) for r in one.reasons] == sorted((abs(r.effect) for r in one.reasons), reverse=True)
    assert [one.reasons for one in explain(ranker, History(()), 3)] == [[], [], []]
    assert len(explain(ranker, History(tuple(range(1, 30))), 10)) == 1  # what the history holds is not recommended


def test_a_user_and_a_list_of_the_event_store_are_explained(tmp_path):
    made_ranker(tmp_path / "rank-made", 30, 16, 20)
    store = Events(f"sqlite:///{tmp_path / 'events.db'}")
    taken = [{"id": f"e{i}", "time": 1.0 + i, "item": f"item-{i}", "action": "click", "value": None, "list_id": None, "place": None} for i in range(4)]  # fmt: skip
    store.keep_events("anna", taken).result()
    shown = {"model": "rank-made", "items": ["item-9"], "history": ["item-7", "item-8"], "times": None}
    store.keep_list("list-1", "ben", shown).result()
    api = client(tmp_path)
    overview = api.get("/data/recommendations.json").json()
    assert overview["rankers"] == ["rank-made"] and [one["id"] for one in overview["stores"][0]["lists"]] == ["list-1"]
    asked = {"ranker": "rank-made", "store": "events.db"}
    for more, history in (({"user": "anna"}, ["item-0", "item-1", "item-2", "item-3"]), ({"list": "list-1"}, ["item-7", "item-8"])):
        found = api.post("/recommendations/explain", json=asked | more).json()
        assert [one["item"] for one in found["history"]] == history and found["known"] == len(history)
        assert all({reason["item"] for reason in one["reasons"]} == set(history) for one in found["items"])
    wrong = api.post("/recommendations/explain", json={**asked, "store": "../events.db"})
    assert wrong.status_code == 400 and "no ranker" in wrong.json()["error"]["message"]
    store.close()


@needs_chromium[0]
@needs_chromium[1]
@pytest.mark.skipif(find_spec("axe_playwright_python") is None, reason="the package axe-playwright-python is not installed")
def test_the_pages_show_it_release_it_and_axe_finds_no_violation(home, judged, browser):
    said(judged)
    (judged / "rank-shop").mkdir()
    evaluation = json.loads((home / "rank-shop" / "evaluation.json").read_text())
    (judged / "rank-shop" / "evaluation.json").write_text(json.dumps(evaluation))
    made_ranker(judged / "rank-made", 30, 16, 20)
    Events(f"sqlite:///{judged / 'events.db'}").close()
    with console(judged) as address, opened(browser, f"{address}#/learn/chat-1") as page:
        page.on("dialog", lambda dialog: dialog.accept())
        page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text())
        page.get_by_label("Percent of the users").fill("50")
        page.get_by_role("button", name="Put chat-1 in service").click()
        until(page, "document.querySelector('main').innerText.includes('tried on 50')")
        assert released(judged)["candidate"]["share"] == 0.5
        places = ("learn", "learn/chat-1", "feedback", "rank", "rank/rank-shop", "recommendations")
        for place, (width, scheme) in zip(places, 3 * [(1100, "light"), (360, "dark")], strict=True):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            page.evaluate(f"location.hash = '#/{place}'")
            until(page, f"document.querySelector('main').dataset.shown === '#/{place}'")
            assert page.evaluate(AXE) == [], place
            assert page.evaluate("document.documentElement.scrollWidth") <= width, place
        page.get_by_label("User", exact=True).fill("anna")
        page.get_by_role("button", name="Explain").first.click()
        page.get_by_role("table", name="Recommendations, explained by the history").wait_for()
        page.evaluate("location.hash = '#/feedback'")
        page.get_by_role("button", name="Count").click()
        page.get_by_role("table", name="The next set by part").wait_for()
        page.evaluate("location.hash = '#/learn'")
        page.get_by_role("button", name="End the trial of chat-1").click()
        until(page, "!document.querySelector('main').innerText.includes('tried on')")
        assert "candidate" not in released(judged)
