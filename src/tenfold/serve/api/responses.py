"""OpenAI's Responses API over chat completions: text in and out, streaming, and earlier answers by name."""

import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Any

from pydantic import ValidationError

from tenfold.serve.api import chat
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.protocol import ChatRequest, ResponsesRequest
from tenfold.serve.api.service import Models, new_id

_KEPT = 1000


class ResponseStore:
    """The latest answers, kept in memory for `previous_response_id` and for looking up."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = OrderedDict()

    def add(self, response: dict[str, Any], messages: list[dict[str, Any]]) -> None:
        self._kept[response["id"]] = response, messages
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def get(self, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A response and its whole conversation. Raises ApiError 404."""
        if name not in self._kept:
            raise ApiError(404, f"There is no response {name!r}: it was never stored, or is no longer kept.")
        return self._kept[name]

    def delete(self, name: str) -> None:
        self.get(name)
        del self._kept[name]


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


async def prepare(models: Models, body: ResponsesRequest, kept: ResponseStore, owner: str) -> chat.Conversation:
    """The chat request of a response. Raises ApiError or TenfoldError in one sentence."""
    if body.conversation is not None:
        raise ApiError(404, "Conversations are not stored here: send the messages, or previous_response_id.", param="conversation")
    if body.background:
        raise ApiError(400, "Responses are not made in the background here: leave background out.", param="background")
    messages = kept.get(body.previous_response_id)[1] if body.previous_response_id else []
    messages = messages + _turns(body.input)
    told = [{"role": "system", "content": body.instructions}] if body.instructions else []
    form = (body.text or {}).get("format") or {}
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
    if isinstance(form, dict) and form.get("type") in ("json_schema", "json_object"):
        wanted["response_format"] = {"type": form["type"], "json_schema": {"schema": form.get("schema")}}
    try:
        request = ChatRequest.model_validate(wanted)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ApiError(400, f"The input cannot be read ({where}: {first['msg']}).", param="input") from None
    conversation = await chat.prepare(models, request, owner)
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
        "text": body.text or {"format": {"type": "text"}},
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


def _counts(conversation: chat.Conversation, g: chat.Gathered, cached: int) -> dict[str, Any]:
    read, written = len(conversation.request.tokens), len(g.tokens)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }


async def events(
    models: Models, body: ResponsesRequest, conversation: chat.Conversation, kept: ResponseStore
) -> AsyncGenerator[dict[str, Any], None]:
    """Every event of a streamed response; the last carries the whole."""
    g, cached, number, held, spoken = chat.Gathered(), 0, 0, "", ""
    name = new_id("msg")

    def event(kind: str, **more: Any) -> dict[str, Any]:
        nonlocal number
        number += 1
        return {"type": kind, "sequence_number": number - 1, **more}

    def opening() -> list[dict[str, Any]]:
        part = {"type": "output_text", "text": "", "annotations": []}
        return [
            event("response.output_item.added", output_index=0, item=_item(name, None, "in_progress")),
            event("response.content_part.added", **here, part=part),
        ]

    here = {"item_id": name, "output_index": 0, "content_index": 0}
    begun = _object(body, conversation, "in_progress", [], None)
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    is_open = not conversation.tools  # with tools it may turn out that there is no message, only calls
    for opened in opening() if is_open else ():
        yield opened
    async for piece in models.generate(conversation.model, conversation.request, []):
        g.add(piece)
        cached = max(cached, piece.cached_tokens)
        text = piece.text
        if conversation.tools:
            text, held = chat.sayable(held + text, g, piece.finish_reason)
        for opened in opening() if text and not is_open else ():
            yield opened
        if text:
            is_open, spoken = True, spoken + text
            yield event("response.output_text.delta", **here, delta=text, logprobs=[])
    said, _ = chat.message(conversation, g)
    calls = said.get("tool_calls") or []
    if not calls and held:
        for opened in () if is_open else opening():
            yield opened
        is_open, spoken = True, spoken + held
        yield event("response.output_text.delta", **here, delta=held, logprobs=[])
    status = "incomplete" if g.finish_reason == "length" else "completed"
    output = []
    if is_open:
        item = _item(name, spoken, status)
        yield event("response.output_text.done", **here, text=spoken, logprobs=[])
        yield event("response.content_part.done", **here, part=item["content"][0])
        yield event("response.output_item.done", output_index=0, item=item)
        output.append(item)
    for call in calls:
        function, at = call["function"], len(output)
        item = {"id": new_id("fc"), "type": "function_call", "call_id": call["id"], "status": "completed", **function}
        there = {"item_id": item["id"], "output_index": at}
        yield event("response.output_item.added", output_index=at, item={**item, "arguments": "", "status": "in_progress"})
        yield event("response.function_call_arguments.delta", **there, delta=function["arguments"])
        yield event("response.function_call_arguments.done", **there, **function)
        yield event("response.output_item.done", output_index=at, item=item)
        output.append(item)
    whole = _object(body, conversation, status, output, _counts(conversation, g, cached))
    whole["completed_at"] = time.time() if status == "completed" else None
    if body.store is not False:
        turn = {**_calling(calls), "content": spoken} if calls else {"role": "assistant", "content": spoken}
        kept.add(whole, [*conversation.messages, turn])
    yield event(f"response.{status}", response=whole)


async def answer(models: Models, body: ResponsesRequest, conversation: chat.Conversation, kept: ResponseStore) -> dict[str, Any]:
    """The whole response as one object."""
    return [event async for event in events(models, body, conversation, kept)][-1]["response"]
