"""Forwards a request to a replica, and streams its answer back.

A request goes to another replica where the first one cannot be reached, breaks off, refuses it, or fails its health checks before
its answer begins, which is the first byte of the body. Where an answer breaks off later, the connection is closed before the
body's end, which HTTP/1.1 clients notice; a stream of events gets an error event first.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import anyio
import httpx2
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from tenfold.fleet.front.metrics import FrontMetrics
from tenfold.fleet.front.replicas import LOOK_S, Replica, Replicas, beginning_of
from tenfold.serve.api.budget import Budget
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.streaming import format_event, until_disconnect

TRIES = "x-tenfold-tries"  # header of an answer: how often its request was sent to a replica
MOST_BREAKS = 3  # replicas that may break off during one request: the request itself may be what kills them
REFUSALS = (429, 503)
# Headers that belong to one connection, or that the other connection gets anew.
_OWN = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"x-request-id",
}  # fmt: skip
_OF_REQUEST = _OWN | {b"host", b"origin", b"content-length", b"expect"}  # the gate checked `host` and `origin`
_OF_ANSWER = _OWN | {b"date", b"server"}


@dataclass
class Asked:
    """A request, as it is sent to a replica."""

    method: str
    path: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass
class Begun:
    """An answer that has begun: its head, the latest chunk of its body (`last`), and the chunks to come (`rest`)."""

    replica: Replica
    response: httpx2.Response
    last: bytes
    rest: AsyncIterator[bytes]
    tries: int = 1

    @property
    def is_cancelled(self) -> bool:
        """Whether a server that is shutting down cancelled the request: it answers 500 without JSON, unlike the application's own
        errors."""
        return self.response.status_code == 500 and "json" not in self.response.headers.get("content-type", "")

    @property
    def is_refusal(self) -> bool:
        """Whether another replica should be asked: this one is overloaded or is leaving."""
        return self.response.status_code in REFUSALS


class Forward:
    """ASGI application that forwards each request to one of `replicas`.

    `queue` counts the requests under way for each caller. A request takes at most `timeout_s` seconds, including all waiting.
    """

    def __init__(self, replicas: Replicas, metrics: FrontMetrics, queue: Budget, timeout_s: float, client: httpx2.AsyncClient):
        self._replicas, self._metrics, self._queue, self._timeout_s, self._client = replicas, metrics, queue, timeout_s, client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        owner, request = scope["tenfold_caller"].name, Request(scope, receive)
        if not self._queue.has_room(owner, 1):
            raise ApiError(429, "Too many requests are under way: try again in a moment.", retry_after=2)
        with self._queue.holding(owner, 1):
            try:
                asked = _asked(scope, await request.body())
                await until_disconnect(request, self._answer(asked, send))
            except ClientDisconnect:
                self._metrics.gone.inc()
            except ApiError as error:
                if error.status != 499:
                    raise
                self._metrics.gone.inc()

    async def _answer(self, asked: Asked, send: Send) -> None:
        """Forward a request and its answer. Raises ApiError where no answer began."""
        began = asyncio.get_running_loop().time()
        end = began + self._timeout_s
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout_at(end):
                    answer = await self._begin(asked, held)
            except TimeoutError:
                raise ApiError(504, f"No replica began to answer in {self._timeout_s:.0f} s.") from None
            self._metrics.answered(answer.response.status_code, asyncio.get_running_loop().time() - began, answer.tries)
            try:
                async with asyncio.timeout_at(end):
                    await _pass_on(answer, send)
            except (TimeoutError, httpx2.HTTPError) as error:
                self._metrics.cut.inc()
                if isinstance(error, httpx2.HTTPError):
                    answer.replica.rest()
                await _say_cut(answer, send)

    async def _begin(self, asked: Asked, held: AsyncExitStack) -> Begun:
        """The first answer that begins, or the last refusal where all replicas refuse. Its connection is closed with `held`."""
        key, refusals, tries, breaks = beginning_of(asked.body), dict[Replica, Begun](), 0, 0
        while breaks < MOST_BREAKS:
            replica = self._replicas.choose(key, refusals)
            if replica is None:
                await asyncio.sleep(2 * LOOK_S)  # meanwhile the file may change, or a replica recover
                refusals = {one: refusal for one, refusal in refusals.items() if not one.drains}
                if refusals and self._replicas.choose(key, refusals) is None:
                    return list(refusals.values())[-1]
                continue
            tries += 1
            async with AsyncExitStack() as tried:
                try:
                    answer = await self._send(replica, asked, tried)
                    if answer.is_refusal:
                        answer.last += b"".join([piece async for piece in answer.rest])
                except (httpx2.ConnectError, httpx2.ConnectTimeout):
                    replica.rest()
                    continue
                except httpx2.HTTPError:
                    replica.rest()
                    breaks += 1
                    continue
                answer.tries = tries
                if answer.is_cancelled:
                    breaks += 1
                elif not answer.is_refusal:
                    replica.rest_s = 0.0
                    await held.enter_async_context(tried.pop_all())
                    return answer
                else:
                    refusals[replica] = answer
        raise ApiError(502, f"{MOST_BREAKS} replicas broke off during this request before they began an answer.")

    async def _send(self, replica: Replica, asked: Asked, held: AsyncExitStack) -> Begun:
        """Send the request. Raises httpx2.HTTPError where no answer begins, also where the replica fails its health checks
        meanwhile."""
        held.enter_context(replica.asked())
        url = httpx2.URL(replica.url).copy_with(raw_path=asked.path)
        request = self._client.build_request(asked.method, url, headers=asked.headers, content=asked.body or None)
        with anyio.CancelScope() as scope:
            replica.waiting.add(scope)
            held.callback(replica.waiting.discard, scope)
            response = await self._client.send(request, stream=True)
            held.push_async_callback(response.aclose)
            pieces = response.aiter_raw()
            first = await anext(pieces, b"")
            replica.waiting.discard(scope)
            return Begun(replica, response, first, pieces)
        raise httpx2.ReadTimeout(f"{replica.url} failed its health checks.")


def _asked(scope: Scope, body: bytes) -> Asked:
    headers = [(name, value) for name, value in scope["headers"] if name not in _OF_REQUEST]
    headers.append((b"x-request-id", scope["tenfold_request"]))
    query = scope["query_string"]
    return Asked(scope["method"], scope["raw_path"] + (b"?" + query if query else b""), headers, body)


async def _pass_on(answer: Begun, send: Send) -> None:
    """Stream the answer to the client. Raises httpx2.HTTPError where the replica breaks off."""
    headers = [(name.lower(), value) for name, value in answer.response.headers.raw if name.lower() not in _OF_ANSWER]
    headers.append((TRIES.encode(), str(answer.tries).encode()))
    await send({"type": "http.response.start", "status": answer.response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": answer.last, "more_body": True})
    async for piece in answer.rest:
        answer.last = piece
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _say_cut(answer: Begun, send: Send) -> None:
    """Send an error event if the answer is a stream of events. The caller then returns before the body's end, so that the server
    closes the connection."""
    if answer.response.headers.get("content-type", "").startswith("text/event-stream") and answer.last.endswith(b"\n\n"):
        event = format_event(ApiError(502, "The replica broke off in the middle of this answer: ask again.").body())
        await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
