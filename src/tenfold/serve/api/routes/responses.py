"""`/v1/responses`: OpenAI's Responses API on top of chat completions: streaming, stored responses and background mode."""

import asyncio
import time
import traceback
from collections.abc import AsyncGenerator
from contextlib import suppress
from itertools import chain
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from openai.types.responses import InputTokenCountResponse
from openai.types.responses import Response as ResponsesAnswer
from pydantic import BaseModel, Field

from tenfold.serve.api.answer_types import Deleted
from tenfold.serve.api.background import Events
from tenfold.serve.api.budget import Place
from tenfold.serve.api.dependencies import Owner, Placed, ServedModels, Stored, Works, gives, streams
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.models import Models
from tenfold.serve.api.protocol import ResponsesRequest
from tenfold.serve.api.response_store import ResponseStore
from tenfold.serve.api.routes import chat
from tenfold.serve.api.routes.answers import Gathered
from tenfold.serve.api.routes.conversations import KIND as CONVERSATION
from tenfold.serve.api.routes.conversations import append
from tenfold.serve.api.routes.items import stored, turns
from tenfold.serve.api.routes.response_writer import Writer
from tenfold.serve.api.streaming import stream, until_disconnect
from tenfold.spec.errors import TenfoldError

router = APIRouter()
_EVENTS = "response.events"  # the kind under which a background stream's events are stored, for later readers


class Reading(BaseModel):
    """How a response is to be read: whole, or as events, from the first or from after a number on."""

    stream: bool = False
    starting_after: Annotated[int, Field(ge=0)] | None = None


@router.post("/v1/responses", **streams(ResponsesAnswer))
async def create_response(
    body: ResponsesRequest, request: Request, place: Placed, models: ServedModels, store: Stored, background: Works
) -> Response:
    conversation = await until_disconnect(request, prepare(models, body, store, place))
    if body.background:
        begun, log = _object(body, conversation, "in_progress", [], None), Events()
        store.add(place.owner, begun, conversation.messages)
        work = background.start(place.owner, begun["id"], in_background(body, conversation, store, log), log)
        response = await stream(request, log.after(-1), named=True) if body.stream else JSONResponse(begun)
        response.background = work
        return response
    if body.stream:
        return await stream(request, events(body, conversation, store), named=True)
    return JSONResponse(await until_disconnect(request, answer(body, conversation, store)))


@router.post("/v1/responses/input_tokens", **gives(InputTokenCountResponse))
async def count_input(body: ResponsesRequest, place: Placed, models: ServedModels, store: Stored) -> Response:
    conversation = await prepare(models, body, store, place, counts=True)
    return JSONResponse({"object": "response.input_tokens", "input_tokens": len(conversation.request.tokens)})


@router.get("/v1/responses/{name}", **streams(ResponsesAnswer))
async def get_response(
    name: str, asked: Annotated[Reading, Query()], request: Request, owner: Owner, store: Stored, background: Works
) -> Response:
    """The response; with `stream`, the events of a background response after number `starting_after`."""
    response = store.get(owner, name)[0]
    if not asked.stream:
        return JSONResponse(response)
    log = background.events(owner, name) or Events(store.get(owner, _log_name(name), _EVENTS)[1], ended=True)
    after = -1 if asked.starting_after is None else asked.starting_after
    return await stream(request, log.after(after), named=True)


@router.post("/v1/responses/{name}/cancel", **gives(ResponsesAnswer))
async def cancel_response(name: str, owner: Owner, store: Stored, background: Works) -> Response:
    """Cancel a background response if it is running, and return it."""
    if not store.get(owner, name)[0]["background"]:
        raise ApiError(400, "Only a response with background: true can be cancelled: to stop another, close its connection.")
    await background.cancel(owner, name)
    return JSONResponse(store.get(owner, name)[0])


@router.delete("/v1/responses/{name}", **gives(Deleted))
async def delete_response(name: str, owner: Owner, store: Stored, background: Works) -> Response:
    await background.cancel(owner, name)
    store.delete(owner, name)
    with suppress(ApiError):  # it has no stored events
        store.delete(owner, _log_name(name), _EVENTS)
    return JSONResponse({"id": name, "object": "response", "deleted": True})


def _tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Functions in the form of chat completions."""
    for tool in tools or ():
        if tool.get("type") != "function" or not tool.get("name"):
            raise ApiError(400, f"Tools must be functions with a name, not {tool.get('type')!r}.", param="tools")
    return [{"type": "function", "function": tool} for tool in tools] if tools else None


async def prepare(
    models: Models, body: ResponsesRequest, store: ResponseStore, place: Place, counts: bool = False
) -> chat.Conversation:
    """The chat request for a response; `counts` as in `chat.prepare`. Raises ApiError or TenfoldError."""
    if body.background and body.store is False:
        raise ApiError(400, "A response in the background is stored: leave store out.", param="background")
    messages = _earlier(body, store, place.owner) + turns(body.input)
    system = [{"role": "system", "content": body.instructions}] if body.instructions else []
    form = body.text.format if body.text else None
    choice = body.tool_choice
    if isinstance(choice, dict) and "name" in choice:
        choice = {"type": "function", "function": {"name": choice["name"]}}
    wanted = {
        "model": body.model,
        "messages": system + messages,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "tools": _tools(body.tools),
        "tool_choice": choice,
        "parallel_tool_calls": body.parallel_tool_calls,
        "user": body.user,
    }
    if form is not None:
        wanted["response_format"] = {"type": form.type, "json_schema": {"schema": form.schema_}}
    conversation = await chat.prepare(models, chat.request_of(wanted), place, counts=counts)
    conversation.messages = messages
    return conversation


def _earlier(body: ResponsesRequest, store: ResponseStore, owner: str) -> list[dict[str, Any]]:
    """The messages before a response: of its conversation, or of the previous response and all before it."""
    if body.conversation is not None and body.previous_response_id:
        raise ApiError(400, "Give conversation or previous_response_id, not both.", param="conversation")
    if body.conversation is not None:
        items = store.get(owner, body.conversation_id, CONVERSATION)[1]
        return turns(items) if items else []
    if not body.previous_response_id:
        return []
    response, messages = store.get(owner, body.previous_response_id)
    if response["status"] == "in_progress":
        raise ApiError(400, "The previous response is still under way: wait for its end.", param="previous_response_id")
    return messages


def _object(body: ResponsesRequest, conversation: chat.Conversation, status: str, output: list[Any], usage: Any) -> dict[str, Any]:
    sampling = conversation.request.sampling
    cut = status == "incomplete"
    return {
        "id": _name(conversation),
        "object": "response",
        "created_at": conversation.created,
        "status": status,
        "background": bool(body.background),
        "conversation": {"id": body.conversation_id} if body.conversation_id else None,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": conversation.model.name,
        "output": output,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "temperature": sampling.temperature,
        "text": _text(body),
        "tool_choice": body.tool_choice or "auto",
        "tools": [{"parameters": None, "strict": None, **tool} for tool in body.tools or ()],
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "usage": usage,
        "user": body.user,
    }


def _text(body: ResponsesRequest) -> dict[str, Any]:
    """The request's field `text`, always with a format."""
    asked = body.text.model_dump(by_alias=True, exclude_unset=True) if body.text else {}
    return {**asked, "format": {"type": "text", **(asked.get("format") or {})}}


def _counts(conversation: chat.Conversation, g: Gathered) -> dict[str, Any]:
    read, written = len(conversation.request.tokens), len(g.tokens)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": g.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }


async def events(
    body: ResponsesRequest, conversation: chat.Conversation, store: ResponseStore
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the events of a streamed response, the last with the whole response; store the response unless `store` is false."""
    writer, (spoken,) = Writer(), conversation.begin()
    begun = _object(body, conversation, "in_progress", [], None)
    yield writer.event("created", response=begun)
    yield writer.event("in_progress", response=begun)
    if not conversation.tools:  # with tools there may be only calls, and no message
        for event in writer.open_message():
            yield event
    async for delta in conversation.deltas():
        for event in chain.from_iterable(map(writer.write, spoken.read(delta))):
            yield event
    status = "incomplete" if spoken.finish_reason == "length" else "completed"
    for event in writer.close(status):
        yield event
    whole = _object(body, conversation, status, writer.output, _counts(conversation, spoken))
    whole["completed_at"] = time.time() if status == "completed" else None
    owner = conversation.request.owner
    if body.store is not False:
        store.add(owner, whole, [*conversation.messages, chat.message(spoken)])
    if body.conversation_id:
        with suppress(ApiError):  # the conversation has been deleted meanwhile
            append(store, owner, body.conversation_id, stored(body.input) + writer.output)
    yield writer.event(status, response=whole)


async def answer(body: ResponsesRequest, conversation: chat.Conversation, store: ResponseStore) -> dict[str, Any]:
    """The whole response as one object."""
    return [event async for event in events(body, conversation, store)][-1]["response"]


async def in_background(body: ResponsesRequest, conversation: chat.Conversation, store: ResponseStore, log: Events) -> None:
    """Make a response in the background, whose beginning is stored already. Stores its end, and the events if it is a stream."""
    ended = None
    try:
        async for event in events(body, conversation, store):
            log.add(event)
    except asyncio.CancelledError:
        ended = _object(body, conversation, "cancelled", [], None)
    except Exception as error:  # whatever it is, the stored response must not stay in progress
        message = str(error)
        if not isinstance(error, ApiError | TenfoldError):
            traceback.print_exception(error)
            message = "The server failed on this request: an operator finds the reason in its log."
        ended = _object(body, conversation, "failed", [], None) | {"error": {"code": "server_error", "message": message}}
    owner = conversation.request.owner
    if ended is not None:
        store.add(owner, ended, conversation.messages)
        log.add({"type": "response.failed", "sequence_number": len(log.all), "response": ended})
    log.end()
    if body.stream:
        store.add(owner, {"id": _log_name(_name(conversation)), "object": _EVENTS}, log.all)


def _name(conversation: chat.Conversation) -> str:
    return conversation.request.id.replace("chatcmpl", "resp")


def _log_name(name: str) -> str:
    return f"{name}/events"
