"""A ranker as a backend of the server: a thread beside the event loop answers the requests of many users in batches.

Queue, keys, budgets, metrics, drain and swap are the server's, as for any backend. A request that has waited longer than
`max_wait_ms` is refused, so that the others are answered in time.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from tenfold.model.io.huggingface import weights_hash
from tenfold.rank.ranker import History
from tenfold.rank.serving.places import List
from tenfold.rank.serving.recommender import Query, Recommender
from tenfold.rank.serving.settings import WorkerSettings
from tenfold.serve.api.errors import ApiError
from tenfold.serve.backends.backend import BackendStopped
from tenfold.serve.options import EngineOptions
from tenfold.serve.request import Output, Request, TokenLogprob, failed
from tenfold.spec.errors import TenfoldError


class _Asked(NamedTuple):
    query: Query
    since: float
    answer: "asyncio.Future[List]"


class RankWorker:
    """A `Backend` that ranks items and generates no text."""

    def __init__(self, options: EngineOptions, settings: WorkerSettings = WorkerSettings()):
        """A worker for the model at `options.path`, which `start` loads."""
        self.options, self.settings = options, settings
        self.max_model_len = 0
        self._waiting: deque[_Asked] = deque()
        self._computing = 0
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "tenfold-rank")
        self._task: asyncio.Task[None] | None = None
        self._rng = np.random.default_rng()

    @property
    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def in_flight(self) -> int:
        return len(self._waiting) + self._computing

    @property
    def stats(self) -> dict[str, float]:
        asked, found = self.recommender.hits
        kept = dict.fromkeys(("preemptions", "drafted", "accepted"), 0)
        room = {"free_blocks": 1, "blocks": 1}
        return {
            "running": self._computing,
            "waiting": len(self._waiting),
            **room,
            **kept,
            "prefix_queries": asked,
            "prefix_hits": found,
        }

    async def start(self) -> None:
        self.recommender, self.checkpoint = await asyncio.get_running_loop().run_in_executor(self._thread, self._load)
        self.max_model_len = self.recommender.ranker.model.spec.context
        self._task = asyncio.create_task(self._work())

    def _load(self) -> tuple[Recommender, str]:
        """The recommender after a first request, and the hash of its weights, so that no user waits for either after a swap."""
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        recommender = Recommender.load(self.options.path, self.settings)
        recommender.answer([Query(History(()), 1)], self._rng)
        return recommender, weights_hash(self.options.path)

    async def recommend(self, query: Query) -> List:
        """The list for a query. Raises TenfoldError for a wrong query, ApiError where it waited too long, or BackendStopped."""
        if not self.is_alive:
            raise BackendStopped
        asked = _Asked(query, time.monotonic(), asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        self._wake.set()
        return await asked.answer

    async def add_items(self, items: pa.Table) -> int:
        """As `Recommender.add_items`, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.recommender.add_items, items)

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        yield failed(request, "This model ranks items and generates no text: ask /v1/recommend or /v1/rank.")

    async def score(self, request: Request) -> list[TokenLogprob]:
        raise TenfoldError("This model ranks items and scores no text: ask /v1/rank.")

    def stop(self) -> None:
        if self._task is not None:
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)
        self._thread.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        batch: list[_Asked] = []
        try:
            while True:
                while not (batch := self._next()):
                    self._wake.clear()
                    await self._wake.wait()
                self._computing = len(batch)
                queries = [asked.query for asked in batch]
                self._hand_out(batch, await loop.run_in_executor(self._thread, self._answer, queries))
                self._computing = 0
        finally:
            for asked in (*batch, *self._waiting):
                if not asked.answer.done():
                    asked.answer.set_exception(BackendStopped())

    def _next(self) -> list[_Asked]:
        """The next batch, without requests whose clients have left or that have waited too long."""
        batch: list[_Asked] = []
        while self._waiting and len(batch) < self.options.max_num_seqs:
            asked = self._waiting.popleft()
            if asked.answer.done():
                continue
            if 1000 * (time.monotonic() - asked.since) > self.settings.max_wait_ms:
                asked.answer.set_exception(ApiError(503, "The server is too busy to answer in time: try again.", retry_after=1))
            else:
                batch.append(asked)
        return batch

    def _answer(self, queries: list[Query]) -> list[List | TenfoldError]:
        return self.recommender.answer(queries, self._rng)

    @staticmethod
    def _hand_out(batch: list[_Asked], answers: list[List | TenfoldError]) -> None:
        for asked, answer in zip(batch, answers, strict=True):
            if asked.answer.done():
                continue
            if isinstance(answer, TenfoldError):
                asked.answer.set_exception(answer)
            else:
                asked.answer.set_result(answer)
