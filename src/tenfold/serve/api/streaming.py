"""Streamed answers (server-sent events), and work that is cancelled when its client disconnects."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from tenfold.serve.api.errors import ApiError
from tenfold.serve.backends.backend import BackendStopped
from tenfold.spec.errors import TenfoldError

T = TypeVar("T")
# Many clients take these characters for line ends, which they are not in server-sent events; JSON may escape them.
_LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client disconnects. Raises ApiError 499 then."""
    tasks = task, watcher = asyncio.create_task(work), asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            watcher.result()  # raises what went wrong while it watched
            raise ApiError(499, "The client closed the connection.")
        return task.result()
    finally:
        await cancel(*tasks)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended, ignoring what they raise."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def stream(request: Request, items: AsyncGenerator[dict[str, Any]], named: bool = False) -> StreamingResponse:
    """An answer of `items` as server-sent events, which are `named` by their "type" or end with [DONE].

    An error before the first item is raised, so it becomes an ordinary error answer; a later error becomes an event.
    """
    first = await until_disconnect(request, items.__anext__())

    async def events() -> AsyncIterator[str]:
        try:
            yield format_event(first, named)
            async for item in items:
                yield format_event(item, named)
            if not named:
                yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _failure(error, named)
        except (TenfoldError, BackendStopped) as error:
            yield _failure(ApiError(503, str(error) or "The model's engine ended."), named)
        finally:
            await items.aclose()

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


def _failure(error: ApiError, named: bool) -> str:
    """An error as an event; a named one has the fields of both OpenAI's responses and Anthropic's messages."""
    if not named:
        return format_event(error.body())
    return format_event({"type": "error", "message": str(error), "param": error.param, "code": error.code, **error.body()}, named)


def format_event(item: dict[str, Any], named: bool = False) -> str:
    """A server-sent event whose data is one line, whichever characters a client takes for line ends."""
    head = f"event: {item['type']}\n" if named else ""
    return f"{head}data: {json.dumps(item, ensure_ascii=False, separators=(',', ':')).translate(_LINE_ENDS)}\n\n"
