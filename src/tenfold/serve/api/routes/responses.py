"""`/v1/responses`: OpenAI's Responses API over chat completions, with streaming, and earlier answers by name."""

import asyncio
import copy
import time
import traceback
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from openai.types.responses import InputTokenCountResponse
from openai.types.responses import Response as ResponsesAnswer

from tenfold.serve.api.answer_types import Deleted
from tenfold.serve.api.budget import Place
from tenfold.serve.api.dependencies import Owner, Placed, ServedModels, Stored, Works, gives, streams
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.models import Models
from tenfold.serve.api.protocol import ResponsesRequest
from tenfold.serve.api.response_store import ResponseStore
from tenfold.serve.api.routes import chat
from tenfold.serve.api.routes.answers import Gathered, new_id
from tenfold.serve.api.routes.conversations import KIND as CONVERSATION
from tenfold.serve.api.routes.conversations import append
from tenfold.serve.api.routes.items import stored, turns
from tenfold.serve.api.streaming import stream, until_disconnect
from tenfold.serve.api.tool_parser import Arguments, CallBegins, Piece, Said
from tenfold.spec.errors import TenfoldError

router = APIRouter()


@router.post("/v1/responses", **streams(ResponsesAnswer))
async def create_response(
    body: ResponsesRequest, request: Request, place: Placed, models: ServedModels, store: Stored, background: Works
) -> Response:
    conversation = await until_disconnect(request, prepare(models, body, store, place))
    if body.background:
        begun = _object(body, conversation, "in_progress", [], None)
        store.add(place.owner, begun, conversation.messages)
        work = background.start(place.owner, begun["id"], in_background(body, conversation, store))
        return JSONResponse(begun, background=work)
    if body.stream:
        return await stream(request, events(body, conversation, store), named=True)
    return JSONResponse(await until_disconnect(request, answer(body, conversation, store)))


@router.post("/v1/responses/input_tokens", **gives(InputTokenCountResponse))
async def count_input(body: ResponsesRequest, place: Placed, models: ServedModels, store: Stored) -> Response:
    conversation = await prepare(models, body, store, place)
    return JSONResponse({"object": "response.input_tokens", "input_tokens": len(conversation.request.tokens)})


@router.get("/v1/responses/{name}", **gives(ResponsesAnswer))
async def get_response(name: str, owner: Owner, store: Stored) -> Response:
    return JSONResponse(store.get(owner, name)[0])


@router.post("/v1/responses/{name}/cancel", **gives(ResponsesAnswer))
async def cancel_response(name: str, owner: Owner, store: Stored, background: Works) -> Response:
    """The response, which is cancelled where it was still under way."""
    if not store.get(owner, name)[0]["background"]:
        raise ApiError(400, "Only a response with background: true can be cancelled: close the connection of another.")
    await background.cancel(owner, name)
    return JSONResponse(store.get(owner, name)[0])


@router.delete("/v1/responses/{name}", **gives(Deleted))
async def delete_response(name: str, owner: Owner, store: Stored, background: Works) -> Response:
    await background.cancel(owner, name)
    store.delete(owner, name)
    return JSONResponse({"id": name, "object": "response", "deleted": True})


def _tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Functions as chat completions have them."""
    for tool in tools or ():
        if tool.get("type") != "function" or not tool.get("name"):
            raise ApiError(400, f"Tools must be functions with a name, not {tool.get('type')!r}.", param="tools")
    return [{"type": "function", "function": tool} for tool in tools] if tools else None


async def prepare(models: Models, body: ResponsesRequest, store: ResponseStore, place: Place) -> chat.Conversation:
    """The chat request of a response. Raises ApiError or TenfoldError in one sentence."""
    if body.background and (body.stream or body.store is False):
        raise ApiError(
            400, "A response in the background is stored and is not streamed: leave stream and store out.", param="background"
        )
    messages = _earlier(body, store, place.owner) + turns(body.input)
    told = [{"role": "system", "content": body.instructions}] if body.instructions else []
    form = body.text.format if body.text else None
    choice = body.tool_choice
    if isinstance(choice, dict) and "name" in choice:
        choice = {"type": "function", "function": {"name": choice["name"]}}
    wanted = {
        "model": body.model,
        "messages": told + messages,
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
    conversation = await chat.prepare(models, chat.request_of(wanted), place)
    conversation.messages = messages
    return conversation


def _earlier(body: ResponsesRequest, store: ResponseStore, owner: str) -> list[dict[str, Any]]:
    """What a response goes on with: a conversation, or an earlier response with all before it."""
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
        "id": conversation.request.id.replace("chatcmpl", "resp"),
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
        "text": body.text.model_dump(by_alias=True, exclude_unset=True) if body.text else {"format": {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": [{"parameters": None, "strict": None, **tool} for tool in body.tools or ()],
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "usage": usage,
        "user": body.user,
    }


def _counts(conversation: chat.Conversation, g: Gathered) -> dict[str, Any]:
    read, written = len(conversation.request.tokens), len(g.tokens)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": g.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }


@dataclass
class _Writer:
    """The events of one response, numbered, and the items that they make: messages, and calls of functions."""

    output: list[dict[str, Any]] = field(default_factory=list)
    is_open: bool = False  # whether the last item goes on
    _number: int = 0

    def event(self, kind: str, **more: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": f"response.{kind}", "sequence_number": self._number - 1, **more}

    @property
    def _here(self) -> dict[str, Any]:
        """Where the last item is, and for a message its one part."""
        item = self.output[-1]
        there = {"item_id": item["id"], "output_index": len(self.output) - 1}
        return there | {"content_index": 0} if item["type"] == "message" else there

    def _open(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self.close()
        self.output.append(item)
        self.is_open = True
        yield self.event("output_item.added", output_index=len(self.output) - 1, item=copy.deepcopy(item))

    def open_message(self) -> Iterator[dict[str, Any]]:
        """Begin a message, if none is under way."""
        if not (self.is_open and self.output[-1]["type"] == "message"):
            message = {"type": "message", "role": "assistant", "content": []}
            yield from self._open({"id": new_id("msg"), "status": "in_progress", **message})
            part = {"type": "output_text", "text": "", "annotations": []}
            self.output[-1]["content"].append(part)
            yield self.event("content_part.added", **self._here, part=dict(part))

    def write(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """More of the answer."""
        match piece:
            case Said(text):
                yield from self.open_message()
                self.output[-1]["content"][0]["text"] += text
                yield self.event("output_text.delta", **self._here, delta=text, logprobs=[])
            case CallBegins(_, name, function):
                call = {"type": "function_call", "call_id": name, "name": function, "arguments": ""}
                yield from self._open({"id": new_id("fc"), "status": "in_progress", **call})
            case Arguments(_, text):
                self.output[-1]["arguments"] += text
                yield self.event("function_call_arguments.delta", **self._here, delta=text)

    def close(self, status: str = "completed") -> Iterator[dict[str, Any]]:
        """End the last item, if it goes on."""
        if not self.is_open:
            return
        item, self.is_open = self.output[-1], False
        item["status"] = status
        if item["type"] == "message":
            yield self.event("output_text.done", **self._here, text=item["content"][0]["text"], logprobs=[])
            yield self.event("content_part.done", **self._here, part=item["content"][0])
        else:
            said = {"name": item["name"], "arguments": item["arguments"]}
            yield self.event("function_call_arguments.done", **self._here, **said)
        yield self.event("output_item.done", output_index=len(self.output) - 1, item=item)


async def events(
    body: ResponsesRequest, conversation: chat.Conversation, store: ResponseStore
) -> AsyncGenerator[dict[str, Any], None]:
    """Every event of a streamed response; the last carries the whole response."""
    writer, (spoken,) = _Writer(), conversation.begin()
    begun = _object(body, conversation, "in_progress", [], None)
    yield writer.event("created", response=begun)
    yield writer.event("in_progress", response=begun)
    if not conversation.tools:  # with tools there may be no message, only calls
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
        with suppress(ApiError):  # it was deleted meanwhile
            append(store, owner, body.conversation_id, stored(body.input) + writer.output)
    yield writer.event(status, response=whole)


async def answer(body: ResponsesRequest, conversation: chat.Conversation, store: ResponseStore) -> dict[str, Any]:
    """The whole response as one object."""
    return [event async for event in events(body, conversation, store)][-1]["response"]


async def in_background(body: ResponsesRequest, conversation: chat.Conversation, store: ResponseStore) -> None:
    """Make a response that was stored when it began; how it ends is stored, too."""
    try:
        await answer(body, conversation, store)
        return
    except asyncio.CancelledError:
        ended = _object(body, conversation, "cancelled", [], None)
    except Exception as error:  # whatever it is, the response is under way no longer
        told = str(error)
        if not isinstance(error, ApiError | TenfoldError):
            traceback.print_exception(error)
            told = "The server failed on this request: an operator finds the reason in its log."
        ended = _object(body, conversation, "failed", [], None) | {"error": {"code": "server_error", "message": told}}
    store.add(conversation.request.owner, ended, conversation.messages)
