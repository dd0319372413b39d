"""Responses that are made in the background, after their request has been answered; each is identified by its owner and name."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from starlette.background import BackgroundTask

from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.streaming import cancel


class Events:
    """The events of a response, numbered from 0; each reader can follow them from any number on."""

    def __init__(self, known: list[dict[str, Any]] | None = None, *, ended: bool = False):
        self.all, self._ended, self._news = known or [], ended, asyncio.Event()

    def add(self, event: dict[str, Any]) -> None:
        self.all.append(event)
        self._tell()

    def end(self) -> None:
        """Note that no more events will come."""
        self._ended = True
        self._tell()

    def _tell(self) -> None:
        """Wake up all readers."""
        self._news.set()
        self._news = asyncio.Event()

    async def after(self, number: int) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events after that of a number, as they come, up to the last. Raises ApiError if there can be none."""
        if number >= len(self.all) - self._ended:
            raise ApiError(400, f"There are {len(self.all)} events so far, none behind number {number}.", param="starting_after")
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
    """The running background work. Its request lasts as long, and so holds its share of budgets until then."""

    def __init__(self) -> None:
        self._works: dict[tuple[str, str], tuple[asyncio.Task[None], Events]] = {}

    def start(self, owner: str, name: str, work: Coroutine[Any, Any, None], log: Events) -> BackgroundTask:
        """Start `work`, which writes its events to `log`.

        The request's answer must run the returned task in the background, so that the request lasts until the work is done.
        """
        task = asyncio.create_task(work)
        self._works[owner, name] = task, log
        task.add_done_callback(lambda _: self._works.pop((owner, name)))
        return BackgroundTask(self._until_done, task)

    @staticmethod
    async def _until_done(task: asyncio.Task[None]) -> None:
        try:
            await asyncio.wait([task])
        finally:
            await cancel(task)  # if the server shuts down

    def events(self, owner: str, name: str) -> Events | None:
        """The events of the work of this name; None if it is not running."""
        found = self._works.get((owner, name))
        return None if found is None else found[1]

    async def cancel(self, owner: str, name: str) -> None:
        """Cancel the work of this name if it is running, and wait until it has ended."""
        if found := self._works.get((owner, name)):
            await cancel(found[0])
