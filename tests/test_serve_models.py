"""Which models are in memory: loaded when asked for, the least recently used unloaded, and nobody kept from one that is loaded."""

import asyncio
import time

import pytest

from tenfold.serve.api import service
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.metrics import Metrics
from tenfold.serve.api.service import Limits, Models, ServedModel
from tenfold.serve.engine.engine import EngineOptions


class FakeEngine:
    def __init__(self):
        self.is_alive, self.in_flight = True, 0

    def stop(self):
        assert not self.in_flight, "stopped while somebody waits for its answer"
        self.is_alive = False


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "_UNUSED_SECONDS", 0.02)
    monkeypatch.setattr(service, "_PATIENCE_SECONDS", 0.3)
    made = Models({name: EngineOptions(tmp_path / name) for name in "abc"}, Limits(max_loaded=1, max_queue=3), Metrics())
    made.loads = []

    async def load(name, options):
        await asyncio.sleep(0.05)
        made.loads.append(name)
        return ServedModel(name, options, None, FakeEngine())

    made._load = load
    return made


async def soon(what):
    return await asyncio.wait_for(what, 10)


def test_who_asks_for_a_loaded_model_never_waits_for_one_that_loads(models):
    async def run():
        a = await soon(models.get("a"))
        a.engine.in_flight = 1
        other = asyncio.create_task(models.get("b"))
        await asyncio.sleep(0.1)
        assert await asyncio.wait_for(models.get("a"), 0.02) is a and not other.done()
        a.engine.in_flight = 0
        assert (await soon(other)).name == "b" and list(models.loaded) == ["b"] and not a.engine.is_alive

    asyncio.run(run())


def test_a_busy_model_gives_way_after_a_while_and_comes_back(models):
    async def run():
        a = await soon(models.get("a"))
        a.engine.in_flight = 1
        other = asyncio.create_task(models.get("b"))
        end = time.monotonic() + 10
        while not a.leaving:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        again = asyncio.create_task(models.get("a"))  # behind b, or b would never come
        await asyncio.sleep(0.1)
        assert not other.done() and not again.done() and a.engine.is_alive  # what it began it answers
        a.engine.in_flight = 0
        assert (await soon(other)).name == "b"
        assert (await soon(again)) is not a and models.loads == ["a", "b", "a"]

    asyncio.run(run())


def test_many_who_wait_load_once_and_too_many_are_refused(models):
    async def run():
        results = await asyncio.gather(*(models.get("a") for _ in range(5)), return_exceptions=True)
        refused = [r for r in results if isinstance(r, ApiError)]
        assert len(refused) == 2 and {r.status for r in refused} == {429} and models.loads == ["a"]

    asyncio.run(run())


def test_a_model_whose_engine_ended_is_loaded_again(models):
    async def run():
        (await soon(models.get("a"))).engine.is_alive = False
        assert (await soon(models.get("a"))).engine.is_alive and models.loads == ["a", "a"]

    asyncio.run(run())


def test_the_least_recently_used_goes_first(models):
    async def run():
        models.limits.max_loaded = 2
        for name in ("a", "b", "a", "c"):
            await soon(models.get(name))
        assert set(models.loaded) == {"a", "c"}

    asyncio.run(run())
