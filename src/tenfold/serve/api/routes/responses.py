"""`/v1/responses`: OpenAI's Responses API over chat completions, with streaming, and earlier answers by name."""

import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from openai.types.responses import InputTokenCountResponse
from openai.types.responses import Response as ResponsesAnswer

from tenfold.serve.api.answer_types import Deleted
from tenfold.serve.api.budget import Place
from tenfold.serve.api.dependencies import Owner, Placed, ServedModels, Stored, gives, streams
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.models import Models
from tenfold.serve.api.protocol import ResponsesRequest
from tenfold.serve.api.response_store import ResponseStore
from tenfold.serve.api.routes import chat
from tenfold.serve.api.routes.answers import Gathered, new_id
from tenfold.serve.api.streaming import stream, until_disconnect

router = APIRouter()


@router.post("/v1/responses", **streams(ResponsesAnswer))
async def create_response(body: ResponsesRequest, request: Request, place: Placed, models: ServedModels, store: Stored) -> Response:
    conversation = await until_disconnect(request, prepare(models, body, store, place))
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


@router.delete("/v1/responses/{name}", **gives(Deleted))
async def delete_response(name: str, owner: Owner, store: Stored) -> Response:
    store.delete(owner, name)
    return JSONResponse({"id": name, "object": "response", "deleted": True})


def _turns(value: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Chat messages of an input; none at all is an empty turn."""
    if not isinstance(value, list):
        return [{"role": "user", "content": value or ""}]
    turns: list[dict[str, Any]] = []
    for item in value:
        kind = item.get("type") or "message"
        if kind == "function_call":
            call = {"name": str(item.get("name", "")), "arguments": str(item.get("arguments", ""))}
            turns.append(_calling([{"id": str(item.get("call_id", "")), "type": "function", "function": call}]))
        elif kind == "function_call_output":
            turns.append({"role": "tool", "tool_call_id": str(item.get("call_id", "")), "content": item.get("output") or ""})
        elif kind != "message":
            raise ApiError(400, f"Input of type {kind!r} cannot be read: send messages.", param="input")
        elif item.get("role") not in ("system", "developer", "user", "assistant"):
            known = "system, developer, user or assistant"
            raise ApiError(400, f"A message's role must be {known}, not {item.get('role')!r}.", param="input")
        else:
            turns.append({"role": item["role"], "content": item.get("content") or ""})
    return turns


def _calling(calls: list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Functions as chat completions have them."""
    for tool in tools or ():
        if tool.get("type") != "function" or not tool.get("name"):
            raise ApiError(400, f"Tools must be functions with a name, not {tool.get('type')!r}.", param="tools")
    return [{"type": "function", "function": tool} for tool in tools] if tools else None


async def prepare(models: Models, body: ResponsesRequest, store: ResponseStore, place: Place) -> chat.Conversation:
    """The chat request of a response. Raises ApiError or TenfoldError in one sentence."""
    if body.conversation is not None:
        raise ApiError(404, "Conversations are not stored here: send the messages, or previous_response_id.", param="conversation")
    if body.background:
        raise ApiError(400, "Responses are not made in the background here: leave background out.", param="background")
    messages = store.get(place.owner, body.previous_response_id)[1] if body.previous_response_id else []
    messages = messages + _turns(body.input)
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
        "user": body.user,
    }
    if form is not None:
        wanted["response_format"] = {"type": form.type, "json_schema": {"schema": form.schema_}}
    conversation = await chat.prepare(models, chat.request_of(wanted), place)
    conversation.messages = messages
    return conversation


def _object(body: ResponsesRequest, conversation: chat.Conversation, status: str, output: list[Any], usage: Any) -> dict[str, Any]:
    sampling = conversation.request.sampling
    cut = status == "incomplete"
    return {
        "id": conversation.request.id.replace("chatcmpl", "resp"),
        "object": "response",
        "created_at": conversation.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": conversation.model.name,
        "output": output,
        "parallel_tool_calls": bool(body.tools),
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


def _item(name: str, text: str | None, status: str) -> dict[str, Any]:
    content = [] if text is None else [{"type": "output_text", "text": text, "annotations": []}]
    return {"id": name, "type": "message", "role": "assistant", "status": status, "content": content}


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
    """The events of one response, numbered, and the items that they make: a message, then calls."""

    name: str = field(default_factory=lambda: new_id("msg"))
    spoken: str = ""
    is_open: bool = False  # whether the message has begun
    output: list[dict[str, Any]] = field(default_factory=list)
    _number: int = 0

    def event(self, kind: str, **more: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": f"response.{kind}", "sequence_number": self._number - 1, **more}

    @property
    def _here(self) -> dict[str, Any]:
        return {"item_id": self.name, "output_index": 0, "content_index": 0}

    def open(self) -> Iterator[dict[str, Any]]:
        """Begin the message, if it has not begun."""
        if not self.is_open:
            self.is_open = True
            part = {"type": "output_text", "text": "", "annotations": []}
            yield self.event("output_item.added", output_index=0, item=_item(self.name, None, "in_progress"))
            yield self.event("content_part.added", **self._here, part=part)

    def say(self, text: str) -> Iterator[dict[str, Any]]:
        """More text of the message."""
        if text:
            yield from self.open()
            self.spoken += text
            yield self.event("output_text.delta", **self._here, delta=text, logprobs=[])

    def close(self, status: str) -> Iterator[dict[str, Any]]:
        """End the message, if it has begun."""
        if self.is_open:
            item = _item(self.name, self.spoken, status)
            yield self.event("output_text.done", **self._here, text=self.spoken, logprobs=[])
            yield self.event("content_part.done", **self._here, part=item["content"][0])
            yield self.event("output_item.done", output_index=0, item=item)
            self.output.append(item)

    def call(self, call: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A call of a function."""
        function, at = call["function"], len(self.output)
        item = {"id": new_id("fc"), "type": "function_call", "call_id": call["id"], "status": "completed", **function}
        there = {"item_id": item["id"], "output_index": at}
        yield self.event("output_item.added", output_index=at, item={**item, "arguments": "", "status": "in_progress"})
        yield self.event("function_call_arguments.delta", **there, delta=function["arguments"])
        yield self.event("function_call_arguments.done", **there, **function)
        yield self.event("output_item.done", output_index=at, item=item)
        self.output.append(item)


async def events(
    body: ResponsesRequest, conversation: chat.Conversation, store: ResponseStore
) -> AsyncGenerator[dict[str, Any], None]:
    """Every event of a streamed response; the last carries the whole response."""
    writer, g, held = _Writer(), Gathered(), ""
    begun = _object(body, conversation, "in_progress", [], None)
    yield writer.event("created", response=begun)
    yield writer.event("in_progress", response=begun)
    if not conversation.tools:  # with tools there may be no message, only calls
        for event in writer.open():
            yield event
    async for delta in conversation.deltas():
        g.add(delta)
        text = delta.text
        if conversation.tools:
            text, held = chat.sayable(held + text, g, delta.finish_reason)
        for event in writer.say(text):
            yield event
    said, _ = chat.message(conversation, g)
    calls = said.get("tool_calls") or []
    status = "incomplete" if g.finish_reason == "length" else "completed"
    for event in chain(() if calls else writer.say(held), writer.close(status), *map(writer.call, calls)):
        yield event
    whole = _object(body, conversation, status, writer.output, _counts(conversation, g))
    whole["completed_at"] = time.time() if status == "completed" else None
    if body.store is not False:
        turn = _calling(calls) if calls else {"role": "assistant"}
        store.add(conversation.request.owner, whole, [*conversation.messages, {**turn, "content": writer.spoken}])
    yield writer.event(status, response=whole)


async def answer(body: ResponsesRequest, conversation: chat.Conversation, store: ResponseStore) -> dict[str, Any]:
    """The whole response as one object."""
    return [event async for event in events(body, conversation, store)][-1]["response"]
