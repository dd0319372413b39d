"""Server-sent events for many pages: a feed is polled once a second for all pages that listen, and its news are encoded once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import msgspec
from fastapi.responses import StreamingResponse

from tenfold.spec.errors import TenfoldError

SECONDS = 1.0  # between two polls
QUIET = 15.0  # seconds without news after which a comment is sent, to keep the connection open
BEHIND = 64  # events that a slow page may have pending before its stream is ended; it then connects again

Poll = Callable[[], Any]


class Feeds:
    """The feeds of a console by name. A feed is polled while a page listens; later listeners begin it anew."""

    def __init__(self) -> None:
        self._listeners: dict[str, set[asyncio.Queue[bytes]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def stream(self, name: str, begin: Callable[[], Poll]) -> StreamingResponse:
        """A response with the feed's events from now on. `begin` returns a function that returns news, or None; both run in a
        thread."""
        return StreamingResponse(self._listen(name, begin), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    def close(self) -> None:
        """End all streams, so that the server can end; pages connect again by themselves."""
        for listeners in self._listeners.values():
            _end(listeners)

    async def _listen(self, name: str, begin: Callable[[], Poll]) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue(BEHIND)
        if name not in self._listeners:
            self._listeners[name] = set()
            await self._begin(name, begin)
        listeners = self._listeners[name]
        listeners.add(queue)
        try:
            yield b": here\n\n"
            while queue in listeners:
                try:
                    yield await asyncio.wait_for(queue.get(), QUIET)
                except TimeoutError:
                    yield b": still here\n\n"
        finally:
            listeners.discard(queue)

    async def _begin(self, name: str, begin: Callable[[], Poll]) -> None:
        try:
            poll = await asyncio.to_thread(begin)
        except BaseException:
            _end(self._listeners.pop(name))
            raise
        task = asyncio.create_task(self._run(name, poll))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, name: str, poll: Poll) -> None:
        listeners = self._listeners[name]
        try:
            while listeners:
                news = None
                with suppress(TenfoldError, OSError):  # a file that is being replaced
                    news = await asyncio.to_thread(poll)
                if news is not None:
                    text = b"data: " + msgspec.json.encode(news) + b"\n\n"
                    for queue in list(listeners):
                        if queue.full():
                            listeners.discard(queue)
                        else:
                            queue.put_nowait(text)
                await asyncio.sleep(SECONDS)
        finally:
            if self._listeners.get(name) is listeners:
                del self._listeners[name]
            _end(listeners)


def _end(listeners: set[asyncio.Queue[bytes]]) -> None:
    """End the streams of these listeners."""
    queues = list(listeners)
    listeners.clear()
    for queue in queues:
        if not queue.full():
            queue.put_nowait(b"")


def changes(look: Callable[[], Any]) -> Callable[[], Poll]:
    """A feed that sends {"changed": true} whenever the value of `look()` has changed."""

    def begin() -> Poll:
        before = look()

        def poll() -> dict[str, bool] | None:
            nonlocal before
            now = look()
            before, changed = now, now != before
            return {"changed": True} if changed else None

        return poll

    return begin
