"""Answers that are made after their request has been answered, each known by its owner and its name."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.background import BackgroundTask

from tenfold.serve.api.streaming import cancel


class Background:
    """The work that is under way. What it holds of budgets is held by its request, which lasts as long."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    def start(self, owner: str, name: str, work: Coroutine[Any, Any, None]) -> BackgroundTask:
        """Begin `work`; the task that this gives belongs to the answer of its request, which then lasts until the work is done."""
        task = self._tasks[owner, name] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._tasks.pop((owner, name)))
        return BackgroundTask(self._until_done, task)

    @staticmethod
    async def _until_done(task: asyncio.Task[None]) -> None:
        try:
            await asyncio.wait([task])
        finally:
            await cancel(task)  # where the server ends

    async def cancel(self, owner: str, name: str) -> None:
        """End the work of this name, if it is under way."""
        if task := self._tasks.get((owner, name)):
            await cancel(task)
