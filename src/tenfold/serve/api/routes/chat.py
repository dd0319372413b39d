"""`/v1/chat/completions`: OpenAI's chat completions, whole or streamed. Other chat APIs are built on this module."""

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass, field
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from openai.types.chat import ChatCompletion
from pydantic import ValidationError

from tenfold.serve.api.budget import Place
from tenfold.serve.api.dependencies import AnswerStores, Placed, ServedModels, Stores, streams
from tenfold.serve.api.errors import ApiError, wrong
from tenfold.serve.api.keys import Caller
from tenfold.serve.api.models import Models
from tenfold.serve.api.prompts import Pictures, chat_prompt, plain
from tenfold.serve.api.protocol import ChatRequest, ToolChoice
from tenfold.serve.api.routes.answers import Gathered, Spoken, finite, head, new_id, usage
from tenfold.serve.api.served_model import OutputDelta, ServedModel
from tenfold.serve.api.split import unit
from tenfold.serve.api.streaming import stream, until_disconnect
from tenfold.serve.api.tool_parser import Arguments, CallBegins, Piece, Said, ToolParser
from tenfold.serve.api.tools import call_schema
from tenfold.serve.request import Request, TokenLogprob
from tenfold.serve.sandbox.grammars import GrammarSource

router = APIRouter()


@router.post("/v1/chat/completions", **streams(ChatCompletion))
async def chat_completions(
    body: ChatRequest, request: HttpRequest, place: Placed, models: ServedModels, stores: AnswerStores
) -> Response:
    keeps = stores.feedback is not None
    conversation = await until_disconnect(request, prepare(models, body, place, keeps=keeps))
    if body.stream:
        return await stream(request, chunks(conversation, stores))
    return JSONResponse(await until_disconnect(request, answer(conversation, stores)))


@dataclass
class Conversation:
    """A chat request that is ready for the engine."""

    body: ChatRequest
    model: ServedModel
    request: Request
    messages: list[dict[str, Any]]
    tools: set[str]
    must_call: str | None  # the tool that must be called; "" is any tool, None that no call is needed
    caller: Caller
    created: int = field(default_factory=lambda: int(time.time()))

    def begin(self) -> list[Spoken]:
        """The answers (`n` of the request), still empty."""
        most = 1 if self.body.parallel_tool_calls is False else None
        return [Spoken(parser=ToolParser(self.tools, most)) for _ in range(self.request.sampling.n)]

    def deltas(self) -> AsyncGenerator[OutputDelta, None]:
        """Yield the text of the answers as it comes."""
        return self.model.generate(self.request, self.body.stops, self.body.skip_special_tokens is False)


async def prepare(models: Models, body: ChatRequest, place: Place, *, keeps: bool = False, counts: bool = False) -> Conversation:
    """Check a chat request and make its prompt.

    `keeps` is whether stored answers go to the feedback database, with the log-probabilities with which they were drawn. With
    `counts` only the prompt's tokens are wanted, which may be too many for the context. Raises ApiError or TenfoldError.
    """
    body.check_stream_options()
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true.", param="top_logprobs")
    model = await models.admit(body.model, place, body.n or 1, _unit(body, place))
    tools = [t.model_dump(exclude_none=True) for t in body.tools or ()]
    tools += [{"type": "function", "function": f.model_dump(exclude_none=True)} for f in body.functions or ()]
    must_call = _must_call(body, tools)
    if "none" in (body.tool_choice, body.function_call):
        tools = []
    pictures = Pictures(model)
    messages = await model.prompt(lambda: [plain(message, pictures.mark) for message in body.messages])
    if body.continue_final_message and body.store:
        raise ApiError(400, "An answer that continues another is not stored: leave store out.", param="store")
    prompt = await chat_prompt(model, messages, tools, pictures, body, counts)
    if prompt.pictures:
        models.hold_pictures(prompt.pictures, place)
        messages = [message.model_dump(exclude_none=True) for message in body.messages]  # as they are stored
        if body.store and keeps:
            raise ApiError(400, "Answers about pictures cannot be stored for feedback: leave store out.", param="store")
    model.check_tokens(body.logit_bias or (), "logit_bias")
    wanted = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    sampling = body.sampling(
        max_tokens=0 if counts else model.room(prompt.tokens, wanted),
        stop_tokens=model.text.stop_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs or (body.store and keeps) else None,
        grammar=await model.grammar(_grammar(body, tools, must_call)),
    )
    request = Request(new_id("chatcmpl"), prompt.tokens, sampling, owner=place.owner, pictures=prompt.pictures)
    names = {t["function"]["name"] for t in tools}
    return Conversation(body, model, request, messages, names, must_call, place.caller)


def _unit(body: ChatRequest, place: Place) -> str:
    """What is always answered by the same model during an A/B test (`split.unit`)."""
    first = next((message for message in body.messages if message.role == "user"), body.messages[0])
    return unit(place.caller.user(body.user), plain(first)["content"])


def request_of(wanted: dict[str, Any]) -> ChatRequest:
    """The chat request for a request of another API. Raises ApiError if its input is not valid."""
    try:
        return ChatRequest.model_validate(wanted)
    except ValidationError as error:
        where, said = wrong(error, wanted)
        raise ApiError(400, f"The input cannot be read ({where}: {said}).", param=where or None) from None


def _must_call(body: ChatRequest, tools: list[dict[str, Any]]) -> str | None:
    """`Conversation.must_call` of a request. Raises ApiError if there is no such tool."""
    choice = body.tool_choice
    if isinstance(choice, ToolChoice):
        name = choice.function.name
        if name not in {t["function"]["name"] for t in tools}:
            raise ApiError(400, f"tool_choice names {name!r}, which is not among the tools.", param="tool_choice")
        return name
    if choice != "required":
        return None
    if not tools:
        raise ApiError(400, "tool_choice is required, but there are no tools.", param="tool_choice")
    return ""


def _grammar(body: ChatRequest, tools: list[dict[str, Any]], must_call: str | None) -> GrammarSource | None:
    if must_call is not None:
        return GrammarSource.of_schema(call_schema(tools, must_call or None))
    form = body.response_format
    if form is not None and form.type == "json_object":
        return GrammarSource.of_schema({"type": "object"} if form.schema_ is None else form.schema_)
    if form is not None and form.type == "json_schema":
        if form.json_schema is None or form.json_schema.schema_ is None:
            raise ApiError(400, "response_format of type json_schema needs a json_schema with a schema.", param="response_format")
        return GrammarSource.of_schema(form.json_schema.schema_)
    return body.guided


async def answer(chat: Conversation, stores: Stores) -> dict[str, Any]:
    """The whole answer as one object."""
    spoken = chat.begin()
    async for delta in chat.deltas():
        spoken[delta.index].read(delta)
    whole = await _completion(chat, spoken)
    await keep(chat, spoken, whole, stores)
    return whole


async def _completion(chat: Conversation, spoken: list[Spoken]) -> dict[str, Any]:
    # Log-probabilities contain tokens as text, which takes long for many tokens, so they are made in a thread.
    choices = await asyncio.to_thread(_choices, chat, spoken) if chat.body.logprobs else _choices(chat, spoken)
    return {**_head(chat, "chat.completion"), "choices": choices, "usage": _usage(chat, spoken)}


def _choices(chat: Conversation, spoken: list[Spoken]) -> list[dict[str, Any]]:
    return [
        {
            "index": i,
            "message": message(one),
            "logprobs": _logprobs(chat, one.logprobs[: len(one.tokens)]),
            "finish_reason": _finish(chat, one),
        }
        for i, one in enumerate(spoken)
    ]


def message(one: Spoken) -> dict[str, Any]:
    """The message of an answer."""
    content, calls = one.parser.content, [call.written() for call in one.calls]
    said = {"role": "assistant", "content": content or None if calls else content, "refusal": None}
    return {**said, "tool_calls": calls} if calls else said


def _finish(chat: Conversation, one: Spoken) -> str | None:
    """The finish reason: `tool_calls` if it ended with complete calls, but `stop` if the request named the tool to call."""
    return ("stop" if chat.must_call else "tool_calls") if one.ends_in_calls else one.finish_reason


async def chunks(chat: Conversation, stores: Stores) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the answer's chunks: the role, text and calls, the finish reason, and last the usage if asked for."""
    start, spoken = _head(chat, "chat.completion.chunk"), chat.begin()
    options = chat.body.stream_options
    with_usage = bool(options and options.include_usage)
    if with_usage:
        start["usage"] = None
    for i in range(len(spoken)):
        yield {**start, "choices": [_choice(i, {"role": "assistant", "content": ""})]}
    async for delta in chat.deltas():
        i, one = delta.index, spoken[delta.index]
        pieces = [_delta(piece) for piece in one.read(delta)]
        logprobs = _logprobs(chat, delta.logprobs[: len(delta.tokens)]) if delta.tokens else None
        for piece in pieces or ([{"content": ""}] if logprobs else []):
            yield {**start, "choices": [_choice(i, piece, None, logprobs)]}
            logprobs = None  # only in the chunk of the first piece
        if delta.finish_reason:
            yield {**start, "choices": [_choice(i, {}, _finish(chat, one))]}
    if chat.body.store:
        await keep(chat, spoken, await _completion(chat, spoken), stores)
    if with_usage:
        yield {**start, "choices": [], "usage": _usage(chat, spoken)}


def _delta(piece: Piece) -> dict[str, Any]:
    """The `delta` of a chunk for a piece of the answer."""
    match piece:
        case Said(text):
            return {"content": text}
        case CallBegins(index, name, function):
            called = {"index": index, "id": name, "type": "function", "function": {"name": function, "arguments": ""}}
        case Arguments(index, text):
            called = {"index": index, "function": {"arguments": text}}
    return {"tool_calls": [called]}


def _choice(index: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _head(chat: Conversation, kind: str) -> dict[str, Any]:
    return head(chat.request.id, kind, chat.created, chat.model)


def _usage(chat: Conversation, gathered: list[Spoken]) -> dict[str, Any]:
    cached = max(g.cached_tokens for g in gathered)
    return {**usage([chat.request], gathered), "prompt_tokens_details": {"cached_tokens": cached}}


def _logprobs(chat: Conversation, logprobs: list[TokenLogprob]) -> dict[str, Any] | None:
    """Log-probabilities in the form of chat completions; None if the request does not ask for them."""
    if not chat.body.logprobs:
        return None

    def one(token: int, value: float) -> dict[str, Any]:
        raw = chat.model.text.token_bytes(token)
        return {"token": raw.decode(errors="replace"), "logprob": finite(value), "bytes": list(raw)}

    return {
        "content": [{**one(lp.token, lp.logprob), "top_logprobs": [one(*top) for top in lp.top]} for lp in logprobs],
        "refusal": None,
    }


def _drawn_logprobs(g: Gathered) -> list[float] | None:
    """The log-probability with which each token, including the stop token, was drawn; None if one is not known."""
    drawn = [lp.drawn for lp in g.logprobs if lp.drawn is not None]
    return drawn if drawn and len(drawn) == len(g.logprobs) >= len(g.tokens) else None


async def keep(chat: Conversation, gathered: list[Spoken], whole: dict[str, Any], stores: Stores) -> None:
    """Store the answers if the request has `store: true`: in memory, and in the feedback database if there is one.

    In the database the first answer has the request's id, further ones the id with their number.
    """
    if not chat.body.store:
        return
    stores.answers.add(chat.request.owner, {**whole, "metadata": chat.body.metadata or {}}, chat.messages)
    if stores.feedback is None:
        return
    checkpoint = await chat.model.checkpoint()
    for i, g in enumerate(gathered):
        row = {
            "id": chat.request.id if i == 0 else f"{chat.request.id}-{i}",
            "model": chat.model.name,
            "checkpoint": checkpoint,
            "messages": chat.messages,
            "text": g.text,
            "token_ids": g.tokens + [lp.token for lp in g.logprobs[len(g.tokens) :]],
            "logprobs": _drawn_logprobs(g),
            "sampling": {k: sorted(v) if isinstance(v, frozenset) else v for k, v in asdict(chat.request.sampling).items()},
            "finish_reason": g.finish_reason or "abort",
            "prompt_tokens": len(chat.request.tokens),
            "ttft_ms": 1000 * (g.first_token - chat.created) if g.first_token else None,
        }
        await asyncio.to_thread(stores.feedback.add_response, row, chat.caller.user(chat.body.user))
