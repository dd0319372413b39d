"""Two releases in service: shares of traffic by user and by conversation, the test that may be read at any time, promote, roll back."""

import json
import math
import random
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from chat_models import chat_model
from scipy import integrate

from tenfold.cli.commands import run
from tenfold.learn.data import write_versioned
from tenfold.learn.release import FILE, Server, post, release, released, rollback
from tenfold.learn.statistics import always_valid, always_valid_interval
from tenfold.learn.trial import judged, trial
from tenfold.model.io.huggingface import weights_hash
from tenfold.serve.feedback.feedback import Feedback, responses
from tenfold.serve.options import EngineOptions
from tenfold.serve.start import serving
from tenfold.spec.errors import TenfoldError

CALLERS = 4


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two generations, of which the second has passed the gate."""
    home = tmp_path_factory.mktemp("trial")
    for seed, name in enumerate(("old", "new")):
        chat_model(home / name / "model", seed)
    hashes = {name: weights_hash(home / name / "model") for name in ("old", "new")}
    write_versioned(home / "new" / "gate.json", {"passed": True, "reason": "", "old": str(home / "old"), "hashes": hashes})
    return home


@pytest.fixture(scope="module")
def server(home):
    with serving(
        {"old": EngineOptions(home / "old" / "model", kv_cache_gib=0.05, threads=1)}, feedback=f"sqlite:///{home}/f.db"
    ) as url:
        yield url


@pytest.fixture
def fresh(home, server):
    """The home and its server with the old generation in service alone."""
    (home / FILE).unlink(missing_ok=True)
    Server(server).serve({"path": str(home / "old")})
    return home


def ask(server, prompt="Hello there", **fields):
    return post(
        f"{server}/v1/chat/completions",
        {"messages": [{"role": "user", "content": prompt}], "max_tokens": 4, "temperature": 0, **fields},
    )


def answered_by(server, users):
    return {user: ask(server, user=user)["model"] for user in users}


@contextmanager
def load(server):
    """Requests of many users that go on while the block runs; gives the names of the models that answered, and what failed."""
    models, failed, ended = Counter(), [], threading.Event()

    def call(caller):
        number = 0
        while not ended.is_set():
            number += 1
            try:
                models[ask(server, user=f"{caller}-{number % 50}", stream=False)["model"]] += 1
            except Exception as error:
                failed.append(error)

    with ThreadPoolExecutor(CALLERS) as callers:
        calls = [callers.submit(call, i) for i in range(CALLERS)]
        try:
            yield models, failed
        finally:
            ended.set()
    for one in calls:
        one.result()


def until_answered(models, more):
    """Wait until so many further requests were answered."""
    enough = sum(models.values()) + more
    while sum(models.values()) < enough:
        time.sleep(0.02)


def test_tried_promoted_and_taken_back_under_load_without_losing_a_request(fresh, server):
    with load(server) as (models, failed):
        until_answered(models, 8)
        assert set(models) == {"old"}
        release(fresh / "new", fresh, 0.5, Server(server))
        until_answered(models, 40)
        assert set(models) == {"old", "new"}
        rollback(fresh, Server(server))  # ends the trial
        models.clear()
        until_answered(models, 8 + CALLERS)
        assert models["old"] > 0 and models["new"] <= CALLERS  # that had begun
        release(fresh / "new", fresh, 0.5, Server(server))
        release(fresh / "new", fresh, server=Server(server))  # promotes it
        until_answered(models, 8)
        assert released(fresh)["path"] == str(fresh / "new") and "candidate" not in released(fresh)
        rollback(fresh, Server(server))
        until_answered(models, 8)
        assert not failed and released(fresh)["path"] == str(fresh / "old")


def test_a_user_stays_with_one_model_and_a_growing_share_takes_nobody_back(fresh, server):
    users = [f"user-{i}" for i in range(24)]
    release(fresh / "new", fresh, 0.3, Server(server))
    first = answered_by(server, users)
    assert answered_by(server, users) == first and 0 < Counter(first.values())["new"] < 20
    since = released(fresh)["candidate"]["since"]
    release(fresh / "new", fresh, 0.7, Server(server))
    more = answered_by(server, users)
    assert all(more[user] == "new" for user in users if first[user] == "new")
    assert Counter(more.values())["new"] > Counter(first.values())["new"] and released(fresh)["candidate"]["since"] == since


def test_a_conversation_of_nobody_stays_with_one_model(fresh, server):
    release(fresh / "new", fresh, 0.5, Server(server))
    begun = {f"Question {i}": ask(server, f"Question {i}")["model"] for i in range(12)}
    assert set(begun.values()) == {"old", "new"}
    for prompt, model in begun.items():
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "4"}, {"role": "user", "content": "And?"}]
        assert ask(server, messages=turns)["model"] == model
        responded = post(f"{server}/v1/responses", {"input": prompt, "max_output_tokens": 4})
        assert responded["model"] == model


def test_the_thumbs_of_users_decide(fresh, server, capsys):
    """Users who like the candidate and not the other; the command promotes it once the test says so."""
    release(fresh / "new", fresh, 0.5, Server(server))
    verdicts = []
    for i in range(30):
        answer = ask(server, user=f"judge-{i}", store=True)
        liked = 1 if answer["model"] == "new" else -1
        for rating in (liked, -liked):  # a second thumb of the same user does not count
            post(f"{server}/v1/feedback", {"consent": True, "user": f"judge-{i}", "response_id": answer["id"], "rating": rating})
        if i in (1, 29):
            run(
                [
                    "learn",
                    "trial",
                    "--feedback",
                    str(fresh / "f.db"),
                    "--home",
                    str(fresh),
                    "--decide",
                    "--server",
                    server,
                    "--json",
                ]
            )
            verdicts.append(json.loads(capsys.readouterr().out))
    assert verdicts[0]["verdict"] == "undecided" and verdicts[1]["verdict"] == "better"
    found = verdicts[1]
    assert found["candidate"]["users"] + found["released"]["users"] == 30
    assert (found["candidate"]["liked"], found["released"]["liked"], found["losses"]) == (1, 0, 0)
    assert found["wins"] == min(found["candidate"]["users"], found["released"]["users"])
    stored = {row.model: row.checkpoint for row in Feedback(f"sqlite:///{fresh}/f.db").rows(responses)}
    assert stored == {name: weights_hash(fresh / name / "model") for name in ("old", "new")}
    assert released(fresh)["path"] == str(fresh / "new") and set(answered_by(server, ["a", "b", "c"]).values()) == {"old"}
    with pytest.raises(TenfoldError, match="No candidate .* is tried"):
        trial(fresh, str(fresh / "f.db"))


def test_what_the_server_refuses_changes_nothing(fresh, server):
    with pytest.raises(TenfoldError, match="cannot be reached"):
        release(fresh / "new", fresh, 0.5, Server("http://127.0.0.1:9"))
    assert not (fresh / FILE).exists()
    release(fresh / "new", fresh, server=Server(server))
    with pytest.raises(TenfoldError, match="is in service already"):
        release(fresh / "new", fresh, 0.5, Server(server))
    before = (fresh / FILE).read_bytes()
    with pytest.raises(TenfoldError, match="cannot be reached"):
        rollback(fresh, Server("http://127.0.0.1:9"))
    assert (fresh / FILE).read_bytes() == before
    with pytest.raises(TenfoldError, match="refuses"):
        post(f"{server}/v1/models/split", {"path": str(fresh / "new" / "model"), "share": 1.5})
    with urllib.request.urlopen(f"{server}/v1/models", timeout=10) as answer:
        assert [model["id"] for model in json.load(answer)["data"]] == ["old"]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_equal_models_are_told_apart_as_seldom_as_the_test_says(share):
    """Looked at after every thumb; the rate of thumbs up drifts as a day does."""
    chance, wrong, rounds = random.Random(0), 0, 300
    for _ in range(rounds):
        outcomes = []
        for t in range(240):
            outcomes.append((chance.random() < share, chance.random() < 0.5 + 0.3 * math.sin(t / 38)))
        looks = [judged(outcomes[:n]) for n in range(20, 241, 20)]
        wrong += any(one.verdict != "undecided" for one in looks)
    assert wrong <= rounds * 0.05 + 10


def test_the_confidence_sequence_is_what_the_mixture_does_not_refuse():
    def p(wins, losses, chance):
        prior, _ = integrate.quad(lambda q: q**wins * (1 - q) ** losses, 0, 1)
        return min(1.0, chance**wins * (1 - chance) ** losses / prior)

    for wins, losses in ((0, 0), (7, 2), (0, 12), (30, 30)):
        assert always_valid(wins, losses) == pytest.approx(p(wins, losses, 0.5))
        low, high = always_valid_interval(wins, losses)
        inside = [q for q in np.linspace(0, 1, 1001) if p(wins, losses, q) >= 0.05]
        assert (low, high) == pytest.approx((inside[0], inside[-1]), abs=2e-3)
