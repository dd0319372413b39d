"""The chat: the page of `tenfold serve` as a tab, whose requests the console forwards to the server given by --server.

Only the requests that this page needs are forwarded, with the caller's own key; the console itself has no key.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import httpx2
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from tenfold.console.document import View
from tenfold.serve.api.callers import CurrentCaller
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.keys import STRANGER, Caller
from tenfold.serve.api.streaming import until_disconnect
from tenfold.serve.page.routes import FILES, Fresh

PASSED_ON = {"GET": ("health", "v1/models"), "POST": ("v1/chat/completions", "v1/feedback"), "DELETE": ("v1/feedback",)}
OF_REQUEST, OF_ANSWER = (
    ("authorization", "content-type", "accept"),
    ("content-type", "retry-after", "x-request-id"),
)  # headers that are forwarded
MOST = 64  # requests at once
WAIT = httpx2.Timeout(600.0, connect=5.0)  # seconds until the next piece of an answer


def names(home: Path) -> list[str]:
    """The overview alone: conversations are kept in the browser."""
    return [""]


def document(home: Path, name: str) -> dict[str, str]:
    """The command that starts a console with a chat."""
    return {"empty": "tenfold console --server http://127.0.0.1:8000"}


def add_routes(app: FastAPI) -> None:
    """The page's files under `/page`, and the server's API under `/chat`."""
    forward = Forward(app.state.options.server)

    @asynccontextmanager
    async def closing(_: FastAPI) -> AsyncIterator[None]:
        async with forward.client:
            yield

    router = APIRouter(lifespan=closing)
    router.api_route("/chat/{path:path}", methods=list(PASSED_ON), dependencies=[Depends(forward.slot)])(forward.answer)
    app.include_router(router)
    app.mount("/page", Fresh(directory=FILES))


class Forward:
    """Forwards requests to one server, and streams its answers back."""

    def __init__(self, server: str):
        self.server, self.running = server.rstrip("/"), 0
        self.client = httpx2.AsyncClient(timeout=WAIT, limits=httpx2.Limits(max_connections=MOST), trust_env=False)
        self.client.headers.clear()  # a forwarded request has its client's headers only

    async def slot(self, request: Request) -> AsyncIterator[None]:
        """Hold one of the `MOST` slots for requests until the answer has been sent or the client has disconnected."""
        if self.running >= MOST:
            raise ApiError(429, f"{MOST} requests are under way at the server: try again in a moment.", retry_after=2)
        self.running += 1
        try:
            async with AsyncExitStack() as request.state.held:
                yield
        finally:
            self.running -= 1

    async def answer(self, path: str, request: Request, caller: CurrentCaller) -> Response:
        """The server's answer. Raises ApiError where there is no server, or the chat page needs no such request."""
        self._check(path, request.method, caller)
        headers = {name: request.headers[name] for name in OF_REQUEST if name in request.headers}
        url = httpx2.URL(f"{self.server}/{path}", query=request.scope["query_string"] or None)
        asked = self.client.build_request(request.method, url, headers=headers, content=await request.body() or None)
        try:
            answer = await until_disconnect(request, self.client.send(asked, stream=True))
        except httpx2.HTTPError:
            raise ApiError(502, f"The server at {self.server} does not answer: start it with `tenfold serve`.") from None
        request.state.held.push_async_callback(answer.aclose)
        kept = {name: answer.headers[name] for name in OF_ANSWER if name in answer.headers}
        return StreamingResponse(_pieces(answer), answer.status_code, kept)

    def _check(self, path: str, method: str, caller: Caller) -> None:
        if caller is STRANGER:
            raise ApiError(401, "A valid key is needed: the console forwards it to the server.")
        if not self.server:
            raise ApiError(404, "The console has no server: start it with --server http://127.0.0.1:8000.")
        if path not in PASSED_ON[method]:
            raise ApiError(404, f"The console does not forward {method} /{path[:200]} to the server.")


async def _pieces(answer: httpx2.Response) -> AsyncIterator[bytes]:
    """The pieces of a body. Where it breaks off, the stream ends without its final event, so that readers notice."""
    with suppress(httpx2.HTTPError):
        async for piece in answer.aiter_bytes():
            yield piece


VIEW = View("chat", "Chat", names, document, private=True, routes=add_routes)
