"""Which models are in memory: loaded when asked for, the least recently used unloaded, swapped, and nobody kept from a loaded one."""

import asyncio
import gc
import subprocess
import sys
import time

import pytest
from chat_models import chat_model

from tenfold.serve.api.app import make_app
from tenfold.serve.api.budget import Place
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.keys import Caller
from tenfold.serve.api.models import Models
from tenfold.serve.options import EngineOptions, Limits, ServerOptions
from tenfold.serve.request import Request
from tenfold.serve.text import read_text_side
from tenfold.spec.errors import TenfoldError

LIMITS = {"max_loaded": 1, "max_queue": 3, "idle_seconds": 0.02, "patience_seconds": 0.3}


class FakeBackend:
    def __init__(self):
        self.is_alive, self.in_flight = True, 0

    def stop(self):
        assert not self.in_flight, "stopped while somebody waits for its answer"
        self.is_alive = False


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return read_text_side(chat_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def make_models(tmp_path, text):
    def make(**limits):
        async def load(options):
            await asyncio.sleep(0.05)
            made.loads.append(options.path.name)
            return text, FakeBackend()

        made = Models({name: EngineOptions(tmp_path / name) for name in "abc"}, Limits(**LIMITS | limits), load=load)
        made.loads = []
        return made

    return make


@pytest.fixture
def models(make_models):
    return make_models()


async def soon(what):
    return await asyncio.wait_for(what, 60)


async def until(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def test_who_asks_for_a_loaded_model_never_waits_for_one_that_loads(models):
    async def run():
        a = await soon(models.get("a"))
        a.backend.in_flight = 1
        other = asyncio.create_task(models.get("b"))
        await asyncio.sleep(0.1)
        assert await asyncio.wait_for(models.get("a"), 0.02) is a and not other.done()
        a.backend.in_flight = 0
        assert (await soon(other)).name == "b" and list(models.loaded) == ["b"] and not a.backend.is_alive

    asyncio.run(run())


def test_a_busy_model_gives_way_after_a_while_and_comes_back(models):
    async def run():
        a = await soon(models.get("a"))
        a.backend.in_flight = 1
        other = asyncio.create_task(models.get("b"))
        await until(lambda: a.activity.leaving)
        again = asyncio.create_task(models.get("a"))  # behind b, or b would never come
        await asyncio.sleep(0.1)
        assert not other.done() and not again.done() and a.backend.is_alive  # what it began it answers
        a.backend.in_flight = 0
        assert (await soon(other)).name == "b"
        assert (await soon(again)) is not a and models.loads == ["a", "b", "a"]

    asyncio.run(run())


def test_a_busy_model_stays_if_another_was_unloaded_in_its_place_or_the_load_was_cancelled(make_models):
    async def run():
        models = make_models(max_loaded=2)
        a, b = await soon(models.get("a")), await soon(models.get("b"))
        a.backend.in_flight = b.backend.in_flight = 1
        cancelled = asyncio.create_task(models.get("c"))
        await until(lambda: a.activity.leaving)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        assert await soon(models.get("b")) is b and await soon(models.get("a")) is a
        other = asyncio.create_task(models.get("c"))
        await until(lambda: b.activity.leaving)
        a.backend.in_flight = 0
        await soon(other)
        assert not a.backend.is_alive and await soon(models.get("b")) is b and models.loads == ["a", "b", "c"]
        b.backend.in_flight = 0

    asyncio.run(run())


def test_an_embedding_that_takes_too_long_is_given_up(make_models):
    async def generate(_):
        await asyncio.sleep(60)
        yield

    async def run():
        a = await soon(make_models(timeout_seconds=0.05).get("a"))
        a.backend.generate = generate
        with pytest.raises(ApiError, match="took longer") as late:
            await soon(a.embed(Request("x", [1], task="embed")))
        assert late.value.status == 504

    asyncio.run(run())


def test_an_answer_counts_in_the_tokens_that_are_too_many_only_if_there_is_one(models):
    async def run():
        a = await soon(models.get("a"))
        a.backend.max_model_len = 10
        for wanted, answers, over in ((None, True, 3), (5, True, 7), (None, False, 2), (0, False, 2)):
            with pytest.raises(ApiError, match=f" {over} too many for the context of 10"):
                a.room([1] * 12, wanted, answers)

    asyncio.run(run())


def test_who_waits_for_a_model_to_load_holds_places_in_its_queue_up_to_the_share_of_its_key(make_models):
    models = make_models(max_queue=6, key_share=0.5)
    places = {name: Place(Caller(name, is_operator=False)) for name in ("ann", "bob", "cid")}

    async def asked(owner, sequences):
        try:
            return (await models.admit("a", places[owner], sequences)).name
        except ApiError as error:
            return error.status

    async def run():
        wanted = [("ann", 1), ("ann", 2), ("ann", 1), ("bob", 4), ("bob", 3), ("cid", 1)]
        assert await soon(asyncio.gather(*(asked(*w) for w in wanted))) == ["a", "a", 429, 400, "a", 429]
        assert models.loads == ["a"]
        places["ann"].holds.close()
        assert await soon(asked("cid", 3)) == "a"

    asyncio.run(run())


def test_a_model_whose_engine_ended_is_loaded_again(models):
    async def run():
        (await soon(models.get("a"))).backend.is_alive = False
        assert (await soon(models.get("a"))).backend.is_alive and models.loads == ["a", "a"]

    asyncio.run(run())


def test_the_least_recently_used_goes_first(make_models):
    async def run():
        models = make_models(max_loaded=2)
        for name in ("a", "b", "a", "c"):
            await soon(models.get(name))
        assert set(models.loaded) == {"a", "c"}

    asyncio.run(run())


def test_two_swaps_of_one_model_stop_both_old_ones_once_they_have_answered(models, tmp_path):
    async def run():
        old = []
        for name in "bc":
            served = await soon(models.get("a"))
            served.backend.in_flight = 1
            old.append(served.backend)
            await soon(models.swap("a", tmp_path / name))
        await asyncio.sleep(0.1)
        gc.collect()  # a task that only the loop knows would be gone
        assert all(backend.is_alive for backend in old)
        old[0].in_flight = 0
        await until(lambda: not old[0].is_alive)
        assert old[1].is_alive
        old[1].in_flight = 0
        await until(lambda: not old[1].is_alive)

    asyncio.run(run())


def test_a_swap_waits_for_who_is_about_to_send_a_prompt(models, tmp_path):
    async def run():
        old = await soon(models.get("a"))
        slow = asyncio.create_task(old.prompt(lambda: time.sleep(0.3) or "tokens"))
        await soon(models.swap("a", tmp_path / "b"))
        await asyncio.sleep(0.1)
        assert old.backend.is_alive and not slow.done()
        assert await soon(slow) == "tokens" and old.backend.is_alive  # it can still be generated from
        await until(lambda: not old.backend.is_alive)

    asyncio.run(run())


def test_a_server_that_closes_waits_for_swapped_models_too_and_stops_them(models, tmp_path):
    async def run():
        old = await soon(models.get("a"))
        old.backend.in_flight = 1
        new = await soon(models.swap("a", tmp_path / "b"))
        closing = asyncio.create_task(models.drain(10))
        await asyncio.sleep(0.1)
        assert old.backend.is_alive and not closing.done()
        old.backend.in_flight = 0
        await soon(closing)
        assert not old.backend.is_alive and not new.backend.is_alive

    asyncio.run(run())


@pytest.mark.parametrize("by", ["the signal", "its end"])
def test_a_server_that_closes_loads_no_model_for_who_waits(models, weights, by):
    async def run():
        a = await soon(models.get("a"))
        a.backend.in_flight = 1
        works = (models.get("b"), models.get("c"), models.swap("a", weights / "b"), models.split("a", weights / "b", 0.5))
        waiting = [asyncio.create_task(work) for work in works]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting)
        if by == "the signal":
            models.close()
        ended = asyncio.create_task(models.drain(60)) if by == "its end" else None
        for error in await soon(asyncio.gather(*waiting, return_exceptions=True)):
            assert isinstance(error, ApiError) and error.status == 503 and "shutting down and loads no further model" in str(error)
        assert models.loads == ["a"] and a.backend.is_alive and not a.activity.leaving
        if by == "the signal":
            assert await soon(models.get("a")) is a  # a loaded model still answers
        a.backend.in_flight = 0
        await soon(ended or models.drain(60))
        assert not a.backend.is_alive and models.loads == ["a"]

    asyncio.run(run())


def test_a_server_that_is_ended_before_its_first_model_is_loaded_says_so(models):
    models.close()
    app = make_app(models, ServerOptions())

    async def run():
        async with app.router.lifespan_context(app):
            pass

    with pytest.raises(ApiError, match="shutting down"):
        asyncio.run(run())
    assert isinstance(app.state.failed, TenfoldError) and models.loads == []


def test_a_swapped_model_that_fails_to_stop_is_reported(models, tmp_path, capsys):
    async def run():
        (await soon(models.get("a"))).backend.stop = lambda: 1 / 0
        await soon(models.swap("a", tmp_path / "b"))
        await asyncio.sleep(0.1)

    asyncio.run(run())
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.fixture
def weights(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
    return tmp_path


def test_a_candidate_answers_its_share_and_is_promoted_without_being_loaded_again(models, weights):
    async def run():
        released = await soon(models.get("a"))
        split = await soon(models.split("a", weights / "b", 0.3))
        users = [f"user {i}" for i in range(1000)]
        got = {user: await models.get("a", user) for user in users}
        share = sum(model is split.candidate for model in got.values()) / 1000
        assert 0.25 < share < 0.35 and set(got.values()) == {released, split.candidate} and await models.get("a") is released
        assert await soon(models.split("a", weights / "b", 0.6)) is split
        assert {await models.get("a", user) for user, model in got.items() if model is split.candidate} == {split.candidate}
        released.backend.in_flight = 1
        promoted = await soon(models.swap("a", weights / "b"))
        assert promoted is split.candidate and promoted.name == "a" and models.loads == ["a", "b"] and not models.splits
        assert {await models.get("a", user) for user in users} == {promoted}
        await asyncio.sleep(0.1)
        assert released.backend.is_alive  # what it began it answers
        released.backend.in_flight = 0
        await until(lambda: not released.backend.is_alive)

    asyncio.run(run())


def test_a_candidate_that_is_taken_back_or_has_ended_leaves_all_to_the_release(models, weights):
    async def run():
        released = await soon(models.get("a"))
        users = [f"user {i}" for i in range(100)]
        ended = (await soon(models.split("a", weights / "b", 0.9))).candidate
        ended.backend.is_alive = False
        assert {await models.get("a", user) for user in users} == {released}
        again = (await soon(models.split("a", weights / "b", 0.9))).candidate
        assert again is not ended and again in {await models.get("a", user) for user in users}
        assert await soon(models.swap("a", weights / "a")) is released and models.loads == ["a", "b", "b"]
        assert {await models.get("a", user) for user in users} == {released}
        await until(lambda: not again.backend.is_alive)
        replaced = (await soon(models.split("a", weights / "b", 0.5))).candidate.name
        models.metrics.running.labels(replaced).set(3)
        other = (await soon(models.split("a", weights / "c", 0.5))).candidate
        assert f'num_requests_running{{model_name="{replaced}"}} 0.0' in models.metrics.text().decode()
        await soon(models.drain(10))
        assert not other.backend.is_alive and not released.backend.is_alive

    asyncio.run(run())


@pytest.mark.parametrize("options", [["--backend", "nope"], ["--device", "nope"], []])
def test_a_model_that_cannot_be_loaded_ends_the_command_in_one_sentence(tmp_path, options):
    command = [sys.executable, "-m", "tenfold", "serve", str(tmp_path), "--port", "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("tenfold: ") and done.stderr.count("\n") == 1
    assert "http" not in done.stdout
