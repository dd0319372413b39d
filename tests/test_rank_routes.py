"""The ranking routes: lists against brute force, histories from the event store, experiments, keys, swaps, kills, and bad requests."""

import random
import shutil
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from msgspec.structs import replace

from bench.rank.kills import lost, one_life
from bench.rank.made import made_ranker
from tenfold.model.io.huggingface import read_model, write_model
from tenfold.rank.events.store import Events
from tenfold.rank.family import hstu_shape
from tenfold.rank.offpolicy.log import rows_of
from tenfold.rank.offpolicy.served import served_log
from tenfold.rank.ranker import History, Ranker
from tenfold.rank.serving.asking import rankers
from tenfold.rank.serving.recommender import Recommender
from tenfold.rank.serving.settings import RankSettings, WorkerSettings
from tenfold.rank.serving.start import load_with
from tenfold.serve.api.app import make_app
from tenfold.serve.api.keys import make_key
from tenfold.serve.api.models import Models
from tenfold.serve.options import EngineOptions, Limits, ServerOptions

ITEMS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rankers")
    for name, history in (("a", 20), ("b", 19)):
        made_ranker(folder / name, ITEMS, 16, history)
    (folder / "items.csv").write_text("item,shelf\n" + "".join(f"item-{i},s{i % 3}\n" for i in range(ITEMS)))
    return folder


def client(folder, events="", settings=WorkerSettings(), names=("a",), **options):
    models = {name: EngineOptions(folder / name / "model", threads=1) for name in names}
    patient = replace(settings, max_wait_ms=60_000.0)  # a busy machine refuses nothing
    models = Models(models, Limits(max_loaded=4, key_share=1.0, idle_seconds=0.0), load=partial(load_with, patient))
    return TestClient(make_app(models, ServerOptions(events=events, **options)), base_url="http://127.0.0.1:8000")


@pytest.fixture(scope="module")
def server(folder):
    url = f"sqlite:///{folder / 'events.db'}"
    with client(folder, url, WorkerSettings(items=folder / "items.csv", history_actions=("click",))) as server:
        yield server


def posted(server, path, **body):
    answer = server.post(path, json=body)
    return answer.status_code, answer.json()


def names(items):
    return [f"item-{i}" for i in items]


def test_the_server_recommends_what_the_model_ranks_first(folder, server):
    ranker = Ranker.load(folder / "a")
    for history, k in (([3, 4, 5], 10), ([], 3), (list(range(30)), 30), ([7, 7, 7], 50)):
        scores = ranker.score([History(tuple(i + 1 for i in history))])[0]
        scores[[0, *(i + 1 for i in history)]] = -np.inf
        status, answer = posted(server, "/v1/recommend", history=names(history), k=k)
        assert status == 200 and answer["model"] == "a" and answer["unknown"] == []
        assert answer["items"] == [ranker.names[token] for token in np.argsort(-scores)[:k]]
        assert answer["scores"] == pytest.approx(np.sort(scores)[::-1][:k], abs=1e-4) and answer["propensities"] == [1.0] * k


def test_candidates_are_ranked_and_what_is_not_known_is_said(server):
    status, answer = posted(server, "/v1/rank", history=["item-3", "nobody's"], candidates=["item-9", "item-3", "z", "item-5"])
    assert status == 200 and set(answer["items"]) == {"item-9", "item-3", "item-5"} and answer["unknown"] == ["nobody's", "z"]
    assert answer["scores"] == sorted(answer["scores"], reverse=True)
    _, fewer = posted(server, "/v1/rank", history=["item-3"], candidates=names(range(20)), k=4, exclude=["item-9"], repeat=False)
    assert len(fewer["items"]) == 4 and not {"item-3", "item-9"} & set(fewer["items"])


def test_rules_come_in_the_request(server):
    rules = {"where": {"shelf": ["s0", "s1"]}, "at_most": {"shelf": 2}, "diversity": 0.2}
    _, answer = posted(server, "/v1/recommend", history=["item-3"], k=10, rules=rules)
    shelves = sorted(int(item[5:]) % 3 for item in answer["items"])
    assert shelves == [0, 0, 1, 1]


def test_a_new_user_s_events_are_the_history_of_the_next_list(folder, server):
    for n, item in enumerate(("item-3", "item-8", "item-20", "item-21", "item-22")):
        event = {"item": item, "action": "click", "id": str(n), "time": 1000.0 + n}
        assert posted(server, "/v1/events", user="new", events=[event]) == (200, {"kept": 1, "known": 0})
        given = posted(server, "/v1/recommend", history=["item-3", "item-8", "item-20", "item-21", "item-22"][: n + 1])[1]
        assert posted(server, "/v1/recommend", user="new")[1]["items"] == given["items"]
    again = posted(server, "/v1/events", user="new", events=[{"item": "item-3", "id": "0"}, {"item": "item-4", "action": "view"}])
    assert again == (200, {"kept": 2, "known": 1})
    assert posted(server, "/v1/recommend", user="new")[1]["items"] == given["items"]  # a view is no history here


def test_shown_lists_are_kept_with_their_places_and_chances(folder, server):
    _, answer = posted(server, "/v1/recommend", user="someone", history=["item-1"], k=5)
    store = Events.open(str(folder / "events.db"))
    row = wait_for_list(store, answer["id"])
    assert row.user_hash == store.user_hash("someone") and row.shown["items"] == answer["items"]
    assert row.shown["propensities"] == [1.0] * 5 and row.shown["history"] == ["item-1"] and len(row.shown["checkpoint"]) == 64
    assert "someone" not in (folder / "events.db").read_bytes().decode("latin-1")


def test_a_log_of_the_store_s_histories_is_judged_by_what_was_served(folder, tmp_path):
    made_ranker(folder / "timed", ITEMS, 16, 20, hstu_shape)
    model = read_model(folder / "timed" / "model")
    for block in model.blocks:
        torch.nn.init.normal_(block.time_bias, std=3.0)
    write_model(model, tmp_path / "drawn")
    shutil.copy(tmp_path / "drawn" / "model.safetensors", folder / "timed" / "model")
    settings = WorkerSettings(history_actions=("click",), explore=0.3)
    later = time.time() + 10_000  # a clock that is ahead: lists are of a later time than that of their rows
    with client(folder, f"sqlite:///{tmp_path / 'events.db'}", settings, ("timed",)) as server:
        for user in range(30):
            taken = [("view", 5), ("click", 10 + user), ("click", 9), ("view", 21)]
            events = [{"item": f"item-{i}", "action": a, "time": later - 100.0**n} for n, (a, i) in enumerate(taken)]
            assert posted(server, "/v1/events", user=f"u{user}", events=events)[0] == 200
            assert posted(server, "/v1/recommend", user=f"u{user}", k=5)[0] == 200
    ranking = RankSettings(history_actions=("click",), explore=0.3)
    store = Events.open(str(tmp_path / "events.db"))
    rows = rows_of(*served_log(store, Recommender.load(folder / "timed", ranking), 100)[:2])
    assert len(rows.weight) == 150 and rows.weight == pytest.approx(1)
    store.close()


def wait_for_list(store, name):
    for _ in range(200):
        if found := [row for row in store.of_lists() if row.id == name]:
            return found[0]
        threading.Event().wait(0.05)
    raise AssertionError(f"{name} was not kept")


def test_a_person_can_have_everything_deleted(folder, server):
    posted(
        server, "/v1/events", user="leaves", events=[{"item": "item-3", "action": "click"}, {"item": "item-4", "action": "click"}]
    )
    before = posted(server, "/v1/recommend", user="leaves")[1]["items"]
    assert server.delete("/v1/events", params={"user": "leaves"}).json()["deleted_rows"] >= 2
    assert (
        posted(server, "/v1/recommend", user="leaves")[1]["items"]
        == posted(server, "/v1/recommend", history=[])[1]["items"]
        != before
    )
    store = Events.open(str(folder / "events.db"))
    assert store.deleted_users() == {store.user_hash("leaves")}


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("recommend", {"history": "item-1"}, "history"),
        ("recommend", {"history": [1]}, "history"),
        ("recommend", {"history": ["item-1"] * 2001}, "2000"),
        ("recommend", {"history": [], "k": 0}, "greater than or equal to 1"),
        ("recommend", {"history": [], "k": 101}, "less than or equal to 100"),
        ("recommend", {"history": ["x" * 1001]}, "1000"),
        ("recommend", {"history": ["item-1"], "times": []}, "give one for each"),
        ("recommend", {"history": ["item-1"], "times": [1.7e12]}, "milliseconds"),
        ("recommend", {"rules": {"where": {"colour": "red"}}}, "no attribute 'colour'"),
        ("recommend", {"rules": {"diversity": 2}}, "diversity"),
        ("recommend", {"rules": {"at_most": {"shelf": 0}}}, "at_most"),
        ("rank", {"history": []}, "candidates"),
        ("rank", {"history": [], "candidates": []}, "candidates"),
        ("events", {"events": []}, "events"),
        ("events", {"events": [{"item": ""}]}, "item"),
        ("events", {"events": [{"item": "a", "time": -1}]}, "seconds since 1970"),
        ("events", {"events": [{"item": "a", "time": "noon"}]}, "time"),
        ("events", {"events": [{"item": "a", "place": 0}]}, "place"),
        ("events", {"events": [{"item": "a"}] * 1001}, "1000"),
    ],
)
def test_a_bad_request_is_refused_in_a_sentence(server, path, body, said):
    status, answer = posted(server, f"/v1/{path}", **body)
    assert status == 400 and said in answer["error"]["message"] and answer["error"]["message"].endswith(".")


def test_other_routes_say_that_a_ranker_writes_no_text_and_metrics_count_lists(server):
    assert posted(server, "/v1/recommend", model="another")[0] == 404
    status, answer = posted(server, "/v1/completions", model="a", prompt="item-1", max_tokens=1)
    assert status == 400 and "/v1/recommend" in answer["error"]["message"]
    text = server.get("/metrics").text
    assert 'vllm:request_success_total{finished_reason="stop",model_name="a"}' in text and "vllm:prefix_cache_hits_total" in text


def test_a_server_without_a_ranker_has_no_such_route_and_one_without_a_store_says_so(folder, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    text, rank = EngineOptions(tmp_path), EngineOptions(folder / "a" / "model")
    for options, there in (({"text": text}, False), ({"text": text, "rank": rank}, True)):
        models = Models(options, Limits())
        assert ("/v1/recommend" in make_app(models, ServerOptions()).openapi()["paths"]) == there == bool(rankers(models))
    with client(folder) as server:
        assert posted(server, "/v1/recommend", user="somebody")[0] == 200
        status, answer = posted(server, "/v1/events", events=[{"item": "item-1"}])
        assert status == 404 and "--events" in answer["error"]["message"]


def test_a_service_speaks_for_its_users_and_a_user_s_key_for_itself(folder, tmp_path):
    file = tmp_path / "keys.json"
    keys = {name: make_key(file, name, name == "shop") for name in ("shop", "eve")}
    url = f"sqlite:///{tmp_path / 'events.db'}"
    with client(folder, url, keys=file) as server:
        for name, user in (("shop", "ann"), ("eve", "ann")):
            body = {"user": user, "events": [{"item": "item-1"}]}
            assert server.post("/v1/events", json=body, headers={"authorization": f"Bearer {keys[name]}"}).status_code == 200
        shop = {"authorization": f"Bearer {keys['shop']}"}
        event = {"events": [{"item": "item-2"}]}
        assert server.post("/v1/events", json=event, headers=shop).status_code == 200  # of nobody: the shop is no user
        assert server.post("/v1/recommend", json={}).status_code == 401
        eve = {"authorization": f"Bearer {keys['eve']}"}
        assert server.delete("/v1/events/users/ann", headers=eve).status_code == 403
    store = Events.open(str(tmp_path / "events.db"))
    assert store.users() == {store.user_hash("ann"), store.user_hash("eve"), store.user_hash("anonymous")}


@pytest.mark.parametrize("experiment", ["ab", "interleave"])
def test_an_experiment_keeps_who_showed_what(folder, tmp_path, experiment):
    url = f"sqlite:///{tmp_path / 'events.db'}"
    with client(folder, url, WorkerSettings(experiment=experiment), names=("a", "b")) as server:
        alone = {name: posted(server, "/v1/recommend", model=name, user="u", k=6)[1]["items"] for name in "ab"}
        unnamed = posted(server, "/v1/recommend", k=6)[1]
        assert unnamed["model"] == "a" and unnamed["propensities"] == [1.0] * 6
        answers = [posted(server, "/v1/recommend", user=f"user-{i}", k=6)[1] for i in range(12)]
        for answer in answers:
            assert len(set(answer["items"])) == 6
            if experiment == "ab":
                assert answer["items"] == alone[answer["model"]] and answer["propensities"] == [1.0] * 6
            else:
                assert (
                    answer["model"] == "a|b"
                    and answer["propensities"] is None
                    and answer["items"][0] in (alone["a"][0], alone["b"][0])
                )
    store = Events.open(str(tmp_path / "events.db"))
    shown = {row.id: row.shown for row in store.of_lists()}
    assert not {"arms", "teams"} & set(shown[unnamed["id"]])
    kept = [shown[answer["id"]] for answer in answers]
    assert len(kept) == 12
    assert {one["model"] for one in kept} == ({"a", "b"} if experiment == "ab" else {"a|b"})
    assert all(one["arms"] == ["a", "b"] if experiment == "ab" else set(one["teams"]) <= {0, 1} for one in kept)


def test_a_swap_under_load_loses_no_request(folder):
    with client(folder) as server:
        answered, stop = [], threading.Event()

        def ask():
            while not stop.is_set():
                answered.append(posted(server, "/v1/recommend", history=["item-3"], k=3))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for name in ("b", "a", "b"):
            while len(answered) % 7 != 3:
                threading.Event().wait(0.001)
            assert server.post("/v1/models/swap", json={"model": "a", "path": str(folder / name)}).status_code == 200
        count = len(answered)
        while len(answered) < count + 20:
            threading.Event().wait(0.005)
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in answered} == {200}


@pytest.mark.timeout(600)
def test_no_acknowledged_event_is_lost_by_a_kill(folder, tmp_path):
    chance, database = random.Random(0), tmp_path / "events.db"
    kept = [one for life in range(2) for one in one_life(folder / "a", database, life, chance.uniform(0, 0.3))]
    assert len(kept) >= 6 and len(set(kept)) == len(kept) and not lost(database, kept)


@pytest.mark.parametrize("values", [("large", 3), (3, "large")])
def test_new_items_whose_column_has_texts_and_numbers_are_refused_in_a_sentence(folder, tmp_path, values):
    file = tmp_path / "keys.json"
    header = {"authorization": f"Bearer {make_key(file, 'shop', operator=True)}"}
    rows = [{"item": f"new-{i}", "item_size": value} for i, value in enumerate(values)]
    with client(folder, keys=file) as server:
        answer = server.post("/v1/items", json={"items": rows}, headers=header)
    assert answer.status_code == 400 and "several kinds" in answer.json()["error"]["message"]
