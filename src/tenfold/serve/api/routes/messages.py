"""`/v1/messages`: Anthropic's Messages API on top of chat completions, with streaming and tools."""

import json
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field
from pydantic_core import from_json

from tenfold.serve.api.answer_types import AnthropicCount, AnthropicMessage
from tenfold.serve.api.budget import Place
from tenfold.serve.api.dependencies import Placed, ServedModels, gives, streams
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.models import Models
from tenfold.serve.api.protocol import Body, Finite, RequestBody, Stop, Text
from tenfold.serve.api.routes import chat
from tenfold.serve.api.routes.answers import Gathered, Spoken
from tenfold.serve.api.streaming import stream, until_disconnect
from tenfold.serve.api.tool_parser import Arguments, CallBegins, Piece, Said

router = APIRouter()


class Source(Body):
    """An image's source. Only images in the request itself (base64) are read, others are refused."""

    type: Literal["base64", "url", "file"]
    media_type: str = ""
    data: Text = ""


class Block(Body):
    """A part of a message: text, an image, a tool call (`tool_use`), its result (`tool_result`), or thinking."""

    type: Literal["text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking"]
    text: Text = ""
    thinking: Text = ""
    source: Source | None = None
    id: str = ""
    name: str = ""
    input: dict[str, Any] = Field(default_factory=dict)
    tool_use_id: str = ""
    content: "Text | list[Block]" = ""


class Thinking(Body):
    type: Literal["disabled"]


class Turn(Body):
    role: Literal["user", "assistant"]
    content: Text | list[Block]


class ToolSpec(Body):
    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]


class Choice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class CountRequest(RequestBody):
    """The fields of a request that make its prompt."""

    model: str = ""
    messages: Annotated[list[Turn], Field(min_length=1, max_length=16_384)]
    system: Text | list[Block] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: Choice | None = None


class MessagesRequest(CountRequest):
    refused: ClassVar[tuple[str, ...]] = ("mcp_servers", "container", "output_format", "output_config")

    max_tokens: Annotated[int, Field(ge=1, le=2**31)]
    temperature: Annotated[Finite, Field(ge=0, le=1)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool = False
    thinking: Thinking | None = None


@router.post("/v1/messages", **streams(AnthropicMessage))
async def messages(body: MessagesRequest, request: Request, place: Placed, models: ServedModels) -> Response:
    sampling = body.model_dump(include={"max_tokens", "temperature", "top_p", "top_k"})
    conversation = await until_disconnect(request, prepare(models, body, place, stop=body.stop_sequences, **sampling))
    if body.stream:
        return await stream(request, events(conversation), named=True)
    return JSONResponse(await until_disconnect(request, answer(conversation)))


@router.post("/v1/messages/count_tokens", **gives(AnthropicCount))
async def count_tokens(body: CountRequest, request: Request, place: Placed, models: ServedModels) -> Response:
    conversation = await until_disconnect(request, prepare(models, body, place, counts=True))
    return JSONResponse({"input_tokens": len(conversation.request.tokens)})


async def prepare(models: Models, body: CountRequest, place: Place, *, counts: bool = False, **sampling: Any) -> chat.Conversation:
    """The chat request for Anthropic's messages; `counts` as in `chat.prepare`. Raises ApiError or TenfoldError."""
    if body.messages[-1].role == "assistant":
        raise ApiError(
            400, "The last message must be the user's: this server does not continue answers on /v1/messages.", param="messages"
        )
    system = [{"role": "system", "content": _content(body.system)}] if body.system else []
    choice = body.tool_choice
    wanted = {
        "model": body.model,
        "messages": system + [turn for message in body.messages for turn in _turns(message)],
        "tools": [_tool(tool) for tool in body.tools or ()] or None,
        "tool_choice": None if choice is None else _choice(choice),
        "parallel_tool_calls": False if choice and choice.disable_parallel_tool_use else None,
    }
    return await chat.prepare(models, chat.request_of(wanted | sampling), place, counts=counts)


def _text(content: str | list[Block]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content if block.type == "text")


def _content(content: str | list[Block]) -> str | list[dict[str, Any]]:
    """Content as text; with images, as parts in the form of chat completions."""
    if isinstance(content, str) or all(block.type != "image" for block in content):
        return _text(content)
    parts: list[dict[str, Any]] = []
    for is_picture, found in groupby(content, lambda block: block.type == "image"):
        blocks = list(found)
        parts += map(_picture, blocks) if is_picture else [{"type": "text", "text": _text(blocks)}]
    return parts


def _picture(block: Block) -> dict[str, Any]:
    source = block.source
    url = f"data:{source.media_type};base64,{source.data}" if source is not None and source.type == "base64" else ""
    return {"type": "image_url", "image_url": {"url": url}}


def _turns(message: Turn) -> Iterator[dict[str, Any]]:
    """A message as messages of chat completions: results of tool calls become messages of their own, before the user's text."""
    blocks = [] if isinstance(message.content, str) else message.content
    for block in blocks:
        if block.type == "tool_result":
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": _content(block.content)}
    calls = [
        {"id": b.id, "type": "function", "function": {"name": b.name, "arguments": json.dumps(b.input, ensure_ascii=False)}}
        for b in blocks
        if b.type == "tool_use"
    ]
    content = _content(message.content)
    thoughts = "".join(block.thinking for block in blocks)
    said = {"content": content}
    if thoughts:
        said["reasoning_content"] = thoughts  # the name in templates of reasoning models
    if calls:
        yield {"role": "assistant", **said, "tool_calls": calls}
    elif content or not any(block.type == "tool_result" for block in blocks):
        yield {"role": message.role, **said}


def _tool(tool: ToolSpec) -> dict[str, Any]:
    spec = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": spec}


def _choice(choice: Choice) -> Any:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name or ""}}
    return {"any": "required"}.get(choice.type, choice.type)


def _usage(conversation: chat.Conversation, g: Gathered) -> dict[str, Any]:
    """The usage; Anthropic counts prompt tokens that were found in the cache separately."""
    read = len(conversation.request.tokens) - g.cached_tokens
    cached = {"cache_read_input_tokens": g.cached_tokens, "cache_creation_input_tokens": 0}
    return {"input_tokens": read, "output_tokens": len(g.tokens), **cached}


def _message(conversation: chat.Conversation, g: Gathered) -> dict[str, Any]:
    """Anthropic's message object, without content."""
    return {
        "id": conversation.request.id.replace("chatcmpl", "msg"),
        "type": "message",
        "role": "assistant",
        "model": conversation.model.name,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(conversation, g),
    }


def _end(spoken: Spoken) -> dict[str, Any]:
    """Why a message ended."""
    reason = "stop_sequence" if spoken.stop else "max_tokens" if spoken.finish_reason == "length" else "end_turn"
    return {"stop_reason": "tool_use" if spoken.ends_in_calls else reason, "stop_sequence": spoken.stop or None}


async def answer(conversation: chat.Conversation) -> dict[str, Any]:
    """The whole message as one object, put together from the events of a streamed message."""
    whole: dict[str, Any] = {}
    async for event in events(conversation):
        match event:
            case {"message": begun}:
                whole = begun
            case {"content_block": {"type": "tool_use"} as block}:
                whole["content"].append({**block, "input": ""})
            case {"content_block": block}:
                whole["content"].append(block)
            case {"delta": {"text": text}}:
                whole["content"][-1]["text"] += text
            case {"delta": {"partial_json": text}}:
                whole["content"][-1]["input"] += text
            case {"type": "message_delta", "delta": end, "usage": used}:
                whole |= {**end, "usage": used}
    for block in whole["content"]:
        if block["type"] == "tool_use":
            block["input"] = _input(block["input"])
    return whole


def _input(arguments: str) -> dict[str, Any]:
    """A call's arguments as an object: incomplete JSON as far as it goes, {} if they are not a JSON object."""
    try:
        value = from_json(arguments, allow_partial=True)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


async def events(conversation: chat.Conversation) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the events of a streamed message: blocks of text and of tool calls, in the order in which they are generated."""
    (spoken,), blocks = conversation.begin(), _Blocks()
    yield {"type": "message_start", "message": _message(conversation, spoken)}
    async for delta in conversation.deltas():
        for event in chain.from_iterable(map(blocks.write, spoken.read(delta))):
            yield event
    for event in blocks.close():
        yield event
    yield {"type": "message_delta", "delta": _end(spoken), "usage": _usage(conversation, spoken)}
    yield {"type": "message_stop"}


@dataclass
class _Blocks:
    """Writes the events of the blocks of one message."""

    index: int = 0
    open: Literal["", "text", "tool_use"] = ""  # the type of the block under way

    def _begin(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self.close()
        self.open = block["type"]
        yield {"type": "content_block_start", "index": self.index, "content_block": block}

    def write(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """The events for a piece of the answer."""
        match piece:
            case Said(text):
                if self.open != "text":
                    yield from self._begin({"type": "text", "text": ""})
                delta = {"type": "text_delta", "text": text}
            case CallBegins(_, name, function):
                yield from self._begin({"type": "tool_use", "id": name.replace("call", "toolu"), "name": function, "input": {}})
                return
            case Arguments(_, text):
                delta = {"type": "input_json_delta", "partial_json": text}
        yield {"type": "content_block_delta", "index": self.index, "delta": delta}

    def close(self) -> Iterator[dict[str, Any]]:
        """End the open block, if there is one."""
        if self.open:
            yield {"type": "content_block_stop", "index": self.index}
            self.index, self.open = self.index + 1, ""
