"""Stored chat completions (`store: true`): their owner can read, list and delete them, and change their metadata."""

import asyncio
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from openai.types.chat import ChatCompletion

from tenfold.serve.api.answer_types import Deleted, Listed
from tenfold.serve.api.dependencies import Owner, Stored, gives
from tenfold.serve.api.protocol import MetadataUpdate
from tenfold.serve.api.routes.answers import Limit, page

router = APIRouter(prefix="/v1/chat/completions")
_KIND = "chat.completion"
_METADATA = "metadata["  # the prefix of a metadata key in a query, as OpenAI's client writes it


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
    return JSONResponse(page(found if order == "asc" else found[::-1], after, limit))


@router.get("/{name}", **gives(ChatCompletion))
async def get_chat(name: str, owner: Owner, store: Stored) -> Response:
    return JSONResponse(store.get(owner, name, _KIND)[0])


@router.post("/{name}", **gives(ChatCompletion))
async def update_chat(name: str, body: MetadataUpdate, owner: Owner, store: Stored) -> Response:
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
    return JSONResponse(page(messages if order == "asc" else messages[::-1], after, limit))
