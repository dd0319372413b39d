"""Answers that are made after their request has been answered, each known by its owner and its name."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from starlette.background import BackgroundTask

from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.streaming import cancel


class Events:
    """The events of an answer, numbered from 0 as they come; each reader follows them from where it likes."""

    def __init__(self, known: list[dict[str, Any]] | None = None, *, ended: bool = False):
        self.all, self._ended, self._news = known or [], ended, asyncio.Event()

    def add(self, event: dict[str, Any]) -> None:
        self.all.append(event)
        self._tell()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def after(self, number: int) -> AsyncGenerator[dict[str, Any], None]:
        """The events behind that of a number, up to the last. Raises ApiError where none can follow."""
        if number >= len(self.all) - self._ended:
            raise ApiError(400, f"There are {len(self.all)} events so far, none behind {number}.", param="starting_after")
        at = number + 1
        while True:
            news = self._news
            while at < len(self.all):
                yield self.all[at]
                at += 1
            if self._ended:
                return
            await news.wait()


class Background:
    """The work that is under way. What it holds of budgets is held by its request, which lasts as long."""

    def __init__(self) -> None:
        self._works: dict[tuple[str, str], tuple[asyncio.Task[None], Events]] = {}

    def start(self, owner: str, name: str, work: Coroutine[Any, Any, None], log: Events) -> BackgroundTask:
        """Begin `work`, which writes its events to `log`; the task that this gives belongs to the answer of its request, which then
        lasts until the work is done."""
        task = asyncio.create_task(work)
        self._works[owner, name] = task, log
        task.add_done_callback(lambda _: self._works.pop((owner, name)))
        return BackgroundTask(self._until_done, task)

    @staticmethod
    async def _until_done(task: asyncio.Task[None]) -> None:
        try:
            await asyncio.wait([task])
        finally:
            await cancel(task)  # where the server ends

    def events(self, owner: str, name: str) -> Events | None:
        """The events of the work of this name, if it is under way."""
        found = self._works.get((owner, name))
        return None if found is None else found[1]

    async def cancel(self, owner: str, name: str) -> None:
        """End the work of this name, if it is under way."""
        if found := self._works.get((owner, name)):
            await cancel(found[0])
