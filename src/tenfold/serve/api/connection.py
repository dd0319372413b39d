"""Connections that do not hold a server up: uvicorn's, with time limits, and the longest idle one dropped for a new one."""

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from tenfold.serve.options import ConnectionLimits

BACKLOG = 128  # connections that the system takes in one go
_OTHER_FILES = 64  # that the process may have open: pipes, databases, files of a model


def most_connections(limits: ConnectionLimits) -> int:
    """How many connections may be open, for which there are file descriptors."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(8, min(limits.max_connections, files - BACKLOG - _OTHER_FILES))


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """One connection, which is in one of four states and may stay in three of them only so long.

    It is idle until the head of a request is whole, then the body comes, then the application works. Where the client reads
    too little of the answer, the connection is stalled.
    """

    def __init__(self, limits: ConnectionLimits, most: int, **given: Any):
        super().__init__(**given)
        self._most, self._stalled = most, False
        self._seconds = {"idle": limits.idle_timeout, "body": limits.body_timeout, "stalled": limits.stalled_timeout}
        self._state: tuple[str, Any] = "new", None
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        standing = [c for c in self.connections if not c.transport.is_closing()]  # many may come before the first is lost
        if len(standing) > self._most:
            idle = [c for c in standing if c is not self and c._state[0] == "idle"]
            min(idle, key=lambda c: c._since, default=self).transport.abort()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = True
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled = False
        self._watch()

    def _watch(self) -> None:
        """Note the state; in a new one, or with another request, the time begins anew."""
        cycle = self.cycle
        if self._stalled:
            state = "stalled"
        elif cycle is None or cycle.response_complete:
            state = "idle"
        else:
            state = "body" if cycle.more_body else "working"
        if (state, cycle) == self._state or self.transport.is_closing():
            return
        self._state, self._since = (state, cycle), self.loop.time()
        if self._timer:
            self._timer.cancel()
        seconds = self._seconds.get(state)
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)
