"""OpenAI's Responses API over chat completions: text in and out, streaming, and earlier answers by name."""

import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Any

from tenfold.serve import chat
from tenfold.serve.errors import ApiError
from tenfold.serve.protocol import ChatRequest, JsonSchemaFormat, Message, ResponseFormat, ResponsesRequest
from tenfold.serve.service import Models, new_id

_KEPT = 1000


class Remembered:
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


def _turns(value: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    turns = []
    for item in value:
        if item.get("type", "message") != "message":
            raise ApiError(400, f"Input of type {item.get('type')!r} cannot be read: send messages.", param="input")
        if item.get("role") not in ("system", "developer", "user", "assistant"):
            known = "system, developer, user or assistant"
            raise ApiError(400, f"A message's role must be {known}, not {item.get('role')!r}.", param="input")
        turns.append({"role": item["role"], "content": item.get("content") or ""})
    return turns


async def prepare(models: Models, body: ResponsesRequest, kept: Remembered, owner: str) -> chat.Conversation:
    """The chat request of a response."""
    messages = kept.get(body.previous_response_id)[1] if body.previous_response_id else []
    messages = messages + _turns(body.input)
    if not messages:
        raise ApiError(400, "input is empty: give a text or messages.", param="input")
    told = [{"role": "system", "content": body.instructions}] if body.instructions else []
    form = (body.text or {}).get("format") or {}
    response_format = None
    if form.get("type") == "json_schema":
        response_format = ResponseFormat(type="json_schema", json_schema=JsonSchemaFormat(schema=form.get("schema")))
    elif form.get("type") == "json_object":
        response_format = ResponseFormat(type="json_object")
    try:
        turns = [Message.model_validate(m) for m in told + messages]
    except ValueError:
        raise ApiError(400, "A message's content must be text or a list of parts.", param="input") from None
    request = ChatRequest(
        model=body.model,
        messages=turns,
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        response_format=response_format,
        user=body.user,
    )
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
        "parallel_tool_calls": False,
        "previous_response_id": body.previous_response_id,
        "temperature": sampling.temperature,
        "text": body.text or {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
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
    models: Models, body: ResponsesRequest, conversation: chat.Conversation, kept: Remembered
) -> AsyncGenerator[dict[str, Any], None]:
    """Every event of a streamed response; the last carries the whole."""
    g, cached, number, name = chat.Gathered(), 0, 0, new_id("msg")

    def event(kind: str, **more: Any) -> dict[str, Any]:
        nonlocal number
        number += 1
        return {"type": kind, "sequence_number": number - 1, **more}

    here = {"item_id": name, "output_index": 0, "content_index": 0}
    begun = _object(body, conversation, "in_progress", [], None)
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    yield event("response.output_item.added", output_index=0, item=_item(name, None, "in_progress"))
    yield event("response.content_part.added", **here, part={"type": "output_text", "text": "", "annotations": []})
    async for piece in models.generate(conversation.model, conversation.request, []):
        g.add(piece)
        cached = max(cached, piece.cached_tokens)
        if piece.text:
            yield event("response.output_text.delta", **here, delta=piece.text, logprobs=[])
    status = "incomplete" if g.finish_reason == "length" else "completed"
    item = _item(name, g.text, status)
    yield event("response.output_text.done", **here, text=g.text, logprobs=[])
    yield event("response.content_part.done", **here, part=item["content"][0])
    yield event("response.output_item.done", output_index=0, item=item)
    whole = _object(body, conversation, status, [item], _counts(conversation, g, cached))
    if body.store is not False:
        kept.add(whole, [*conversation.messages, {"role": "assistant", "content": g.text}])
    whole["completed_at"] = time.time() if status == "completed" else None
    yield event(f"response.{status}", response=whole)


async def answer(models: Models, body: ResponsesRequest, conversation: chat.Conversation, kept: Remembered) -> dict[str, Any]:
    """The whole response as one object."""
    return [event async for event in events(models, body, conversation, kept)][-1]["response"]
