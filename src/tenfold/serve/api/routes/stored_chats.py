"""Stored chat completions (`store: true`), while they are remembered: read, listed, given metadata and deleted by their owner."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from openai.types.chat import ChatCompletion

from tenfold.serve.api.answer_types import Deleted, Listed
from tenfold.serve.api.dependencies import Owner, Stored, gives
from tenfold.serve.api.protocol import ChatUpdate

router = APIRouter(prefix="/v1/chat/completions")
_KIND = "chat.completion"
_METADATA = "metadata["  # before a key in a query, as OpenAI's client writes it
Limit = Annotated[int, Query(ge=1, le=100)]


@router.get("", **gives(Listed))
async def list_chats(
    request: Request, owner: Owner, store: Stored, limit: Limit = 20, after: str = "", order: Literal["asc", "desc"] = "asc"
) -> Response:
    query = request.query_params
    wanted = {key[len(_METADATA) : -1]: value for key, value in query.items() if key.startswith(_METADATA)}
    found = [
        chat
        for chat in await asyncio.to_thread(store.all, owner, _KIND)
        if query.get("model") in (None, chat["model"]) and wanted.items() <= chat["metadata"].items()
    ]
    return JSONResponse(_page(found if order == "asc" else found[::-1], after, limit))


@router.get("/{name}", **gives(ChatCompletion))
async def get_chat(name: str, owner: Owner, store: Stored) -> Response:
    return JSONResponse(store.get(owner, name, _KIND)[0])


@router.post("/{name}", **gives(ChatCompletion))
async def update_chat(name: str, body: ChatUpdate, owner: Owner, store: Stored) -> Response:
    chat, messages = store.get(owner, name, _KIND)
    chat["metadata"] = body.metadata
    store.replace(owner, chat, messages)
    return JSONResponse(chat)


@router.delete("/{name}", **gives(Deleted))
async def delete_chat(name: str, owner: Owner, store: Stored) -> Response:
    store.delete(owner, name, _KIND)
    return JSONResponse({"id": name, "object": "chat.completion.deleted", "deleted": True})


@router.get("/{name}/messages", **gives(Listed))
async def list_messages(
    name: str, owner: Owner, store: Stored, limit: Limit = 20, after: str = "", order: Literal["asc", "desc"] = "asc"
) -> Response:
    messages = [{**message, "id": f"{name}-{i}"} for i, message in enumerate(store.get(owner, name, _KIND)[1])]
    return JSONResponse(_page(messages if order == "asc" else messages[::-1], after, limit))


def _page(found: list[dict[str, Any]], after: str, limit: int) -> dict[str, Any]:
    """At most `limit` of the objects behind that with the id `after`; none behind one that is not there."""
    ids = [one["id"] for one in found]
    rest = found[ids.index(after) + 1 if after in ids else len(found) * bool(after) :]
    shown = rest[:limit]
    ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
    return {"object": "list", "data": shown, **ends, "has_more": len(rest) > limit}
