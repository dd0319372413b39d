"""HTTP connections of uvicorn with time limits; above the limit of connections the longest idle one is closed."""

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from tenfold.serve.options import ConnectionLimits

BACKLOG = 128  # connections that wait in the kernel to be accepted
_OTHER_FILES = 64  # file descriptors for pipes, databases and a model's files


def most_connections(limits: ConnectionLimits) -> int:
    """The limit of open connections, lowered to what the limit of file descriptors allows."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(8, min(limits.max_connections, files - BACKLOG - _OTHER_FILES))


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """One connection, which is in one of four states. Three of them have a time limit, after which it is closed.

    It is "idle" until the headers of a request have arrived, "body" until the body has, and then "working", without a limit. It is
    "stalled" while the client does not read the answer.
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
        # Several connections may be accepted before `connection_lost` of an aborted one.
        standing = [c for c in self.connections if not c.transport.is_closing()]
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
        """Determine the state; restart the timer if the state, or the request, is another."""
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
