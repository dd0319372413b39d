"""`/v1/conversations`: named lists of items, which responses can continue; stored in memory like responses."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from openai.types.conversations import Conversation
from pydantic import Field

from tenfold.serve.api.answer_types import Deleted, Listed
from tenfold.serve.api.dependencies import Owner, Stored, gives
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.prompts import plain
from tenfold.serve.api.protocol import Metadata, MetadataUpdate, RequestBody
from tenfold.serve.api.response_store import ResponseStore
from tenfold.serve.api.routes.answers import Limit, new_id, page
from tenfold.serve.api.routes.chat import request_of
from tenfold.serve.api.routes.items import stored, turns

router = APIRouter(prefix="/v1/conversations")
KIND = "conversation"


class ItemsRequest(RequestBody):
    """Items to add to a conversation, within OpenAI's limit."""

    items: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=20)]


class ConversationRequest(RequestBody):
    items: Annotated[list[dict[str, Any]], Field(max_length=20)] | None = None
    metadata: Metadata | None = None


def append(store: ResponseStore, owner: str, name: str, items: list[dict[str, Any]]) -> None:
    """Append items to a conversation. Raises ApiError 404 if there is none of this name."""
    conversation, before = store.get(owner, name, KIND)
    store.add(owner, conversation, before + items)


def _checked(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items in the form in which they are stored. Raises ApiError for items that a model could not be given."""
    for message in request_of({"messages": turns(items)}).messages if items else ():
        plain(message)
    return stored(items)


@router.post("", **gives(Conversation))
async def create_conversation(body: ConversationRequest, owner: Owner, store: Stored) -> Response:
    made = {"id": new_id("conv"), "object": KIND, "created_at": int(time.time()), "metadata": body.metadata or {}}
    store.add(owner, made, _checked(body.items or []))
    return JSONResponse(made)


@router.get("/{name}", **gives(Conversation))
async def get_conversation(name: str, owner: Owner, store: Stored) -> Response:
    return JSONResponse(store.get(owner, name, KIND)[0])


@router.post("/{name}", **gives(Conversation))
async def update_conversation(name: str, body: MetadataUpdate, owner: Owner, store: Stored) -> Response:
    conversation, items = store.get(owner, name, KIND)
    conversation["metadata"] = body.metadata
    store.replace(owner, conversation, items)
    return JSONResponse(conversation)


@router.delete("/{name}", **gives(Deleted))
async def delete_conversation(name: str, owner: Owner, store: Stored) -> Response:
    store.delete(owner, name, KIND)
    return JSONResponse({"id": name, "object": "conversation.deleted", "deleted": True})


@router.post("/{name}/items", **gives(Listed))
async def add_items(name: str, body: ItemsRequest, owner: Owner, store: Stored) -> Response:
    items = _checked(body.items)
    append(store, owner, name, items)
    return JSONResponse(page(items, "", len(items)))


@router.get("/{name}/items", **gives(Listed))
async def list_items(
    name: str, owner: Owner, store: Stored, limit: Limit = 20, after: str = "", order: Literal["asc", "desc"] = "desc"
) -> Response:
    items = store.get(owner, name, KIND)[1]
    return JSONResponse(page(items if order == "asc" else items[::-1], after, limit))


@router.get("/{name}/items/{item}", response_model=None)
async def get_item(name: str, item: str, owner: Owner, store: Stored) -> Response:
    return JSONResponse(_find(store.get(owner, name, KIND)[1], item))


@router.delete("/{name}/items/{item}", **gives(Conversation))
async def delete_item(name: str, item: str, owner: Owner, store: Stored) -> Response:
    conversation, items = store.get(owner, name, KIND)
    items.remove(_find(items, item))
    store.replace(owner, conversation, items)
    return JSONResponse(conversation)


def _find(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    found = next((item for item in items if item["id"] == name), None)
    if found is None:
        raise ApiError(404, f"There is no item {name!r} in this conversation.")
    return found
