"""The HTTP application: routes, keys, limits. What the routes do stands in the modules that they call."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion
from openai.types.responses import InputTokenCountResponse
from openai.types.responses import Response as ResponsesAnswer
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenfold.serve.api import chat, completions, responses
from tenfold.serve.api.errors import ApiError, ErrorAnswer, answer_errors, error_body
from tenfold.serve.api.keys import Keys
from tenfold.serve.api.protocol import (
    ChatRequest,
    CompletionRequest,
    Deleted,
    DeletedRows,
    Detokenized,
    DetokenizeRequest,
    EmbeddingRequest,
    Embeddings,
    Health,
    Kept,
    ModelList,
    ResponsesRequest,
    Swapped,
    Tokenized,
    TokenizeRequest,
)
from tenfold.serve.api.service import Limits, Models
from tenfold.serve.backends.worker import EngineGone
from tenfold.serve.feedback.feedback import Feedback
from tenfold.spec.errors import TenfoldError

_OPEN = ("/", "/health", "/metrics")  # answered without a key
# Many clients take these for the ends of lines, which in a stream of events they are not.
_LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}


@dataclass
class ServerOptions:
    """What a server is made of, besides its models."""

    limits: Limits = field(default_factory=Limits)
    keys: Keys | None = None
    feedback_url: str | None = None
    any_name: bool = False
    allowed_origins: list[str] = field(default_factory=list)
    drain_seconds: float = 60.0


class Judgement(BaseModel):
    """What a person says of a stored answer, or of two."""

    consent: bool = False
    user: str | None = Field(default=None, max_length=200)
    response_id: str = Field(max_length=80)
    rating: Literal[1, -1] | None = None
    reasons: list[Annotated[str, Field(max_length=200)]] = Field(default_factory=list, max_length=20)
    comment: str | None = Field(default=None, max_length=20_000)
    correction: str | None = Field(default=None, max_length=200_000)
    other_response_id: str | None = Field(default=None, max_length=80)
    winner: Literal["a", "b", "tie", "both_bad"] | None = None
    blind: bool = False
    position_swapped: bool = False


class Swap(BaseModel):
    """The path to serve a model from, from now on."""

    model: str = ""
    path: str


def make_app(models: Models, options: ServerOptions) -> FastAPI:
    """The application over `models`. The first model is loaded before the first request is answered."""
    feedback = Feedback(options.feedback_url) if options.feedback_url else None
    remembered = responses.ResponseStore()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await models.get("")
        yield
        await models.drain(options.drain_seconds)

    errors: dict[int | str, dict[str, Any]] = {code: {"model": ErrorAnswer} for code in (400, 401, 404, 413, 429, 503, 504)}
    app = FastAPI(title="Tenfold", version="1", lifespan=lifespan, docs_url=None, redoc_url=None, responses=errors)
    answer_errors(app)
    app.add_middleware(Gate, keys=options.keys, body_bytes=options.limits.body_bytes)
    if options.allowed_origins:
        from fastapi.middleware.cors import CORSMiddleware

        app.add_middleware(CORSMiddleware, allow_origins=options.allowed_origins, allow_methods=["*"], allow_headers=["*"])

    def owner(request: Request) -> str:
        return request.scope.get("tenfold_owner", "anonymous")

    Owner = Annotated[str, Depends(owner)]

    @app.post("/v1/chat/completions", response_model=None, responses=_streamed(ChatCompletion))
    async def chat_completions(body: ChatRequest, request: Request, who: Owner) -> Response:
        conversation = await until_disconnect(request, chat.prepare(models, body, who))
        if body.stream:
            return await stream(chat.chunks(models, conversation, feedback))
        return JSONResponse(await until_disconnect(request, chat.answer(models, conversation, feedback)))

    @app.post("/v1/completions", response_model=None, responses=_streamed(Completion))
    async def plain_completions(body: CompletionRequest, request: Request) -> Response:
        completion = await until_disconnect(request, completions.prepare(models, body))
        if body.stream:
            return await stream(completions.chunks(models, completion))
        return JSONResponse(await until_disconnect(request, completions.answer(models, completion)))

    @app.post("/v1/embeddings", response_model=None, responses=_gives(Embeddings))
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        return JSONResponse(await until_disconnect(request, completions.embeddings(models, body)))

    @app.post("/v1/responses", response_model=None, responses=_streamed(ResponsesAnswer))
    async def create_response(body: ResponsesRequest, request: Request, who: Owner) -> Response:
        conversation = await until_disconnect(request, responses.prepare(models, body, remembered, who))
        if body.stream:
            return await stream(responses.events(models, body, conversation, remembered), named=True)
        return JSONResponse(await until_disconnect(request, responses.answer(models, body, conversation, remembered)))

    @app.post("/v1/responses/input_tokens", response_model=None, responses=_gives(InputTokenCountResponse))
    async def count_input(body: ResponsesRequest, who: Owner) -> Response:
        conversation = await responses.prepare(models, body, remembered, who)
        return JSONResponse({"object": "response.input_tokens", "input_tokens": len(conversation.request.tokens)})

    @app.get("/v1/responses/{name}", response_model=None, responses=_gives(ResponsesAnswer))
    async def get_response(name: str) -> Response:
        return JSONResponse(remembered.get(name)[0])

    @app.delete("/v1/responses/{name}", response_model=None, responses=_gives(Deleted))
    async def delete_response(name: str) -> Response:
        remembered.delete(name)
        return JSONResponse({"id": name, "object": "response", "deleted": True})

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": models.created, "owned_by": "tenfold"}

    @app.get("/v1/models", response_model=None, responses=_gives(ModelList))
    async def list_models() -> Response:
        return JSONResponse({"object": "list", "data": [described(name) for name in models.options]})

    @app.get("/v1/models/{name:path}", response_model=None, responses=_gives(Model))
    async def get_model(name: str) -> Response:
        models.resolve(name)
        return JSONResponse(described(name))

    @app.post("/v1/models/swap", response_model=None, responses=_gives(Swapped))
    async def swap(body: Swap) -> Response:
        swapped = await models.swap(body.model, Path(body.path))
        return JSONResponse({**described(swapped.name), "path": body.path})

    @app.post("/tokenize", response_model=None, responses=_gives(Tokenized))
    async def tokenize(body: TokenizeRequest) -> Response:
        model = await models.get(body.model)
        if body.messages is not None:
            turns = [chat.plain(m) for m in body.messages]
            tokens = await models.prompt(lambda: model.text.encode_chat(turns))
        else:
            tokens = await models.prompt(lambda: model.text.encode(body.prompt or ""))
        return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": model.engine.context})

    @app.post("/detokenize", response_model=None, responses=_gives(Detokenized))
    async def detokenize(body: DetokenizeRequest) -> Response:
        model = await models.get(body.model)
        return JSONResponse({"prompt": model.text.tokenizer.decode(body.tokens, skip_special_tokens=False)})

    @app.post("/v1/feedback", response_model=None, responses=_gives(Kept))
    async def judge(body: Judgement, who: Owner) -> Response:
        kept = _needed(feedback)
        if not body.consent:
            raise ApiError(400, "Feedback is kept only with consent: send consent: true.", param="consent")
        user = body.user or who
        if body.winner is not None:
            if body.other_response_id is None:
                raise ApiError(400, "A comparison needs response_id and other_response_id.", param="other_response_id")
            pair = (body.response_id, body.other_response_id, user, body.winner, body.blind, body.position_swapped)
            await asyncio.to_thread(kept.compare, *pair)
        if body.rating is not None:
            await asyncio.to_thread(kept.rate, body.response_id, user, body.rating, body.reasons, body.comment)
        if body.correction is not None:
            await asyncio.to_thread(kept.correct, body.response_id, user, body.correction)
        if body.winner is None and body.rating is None and body.correction is None:
            raise ApiError(400, "There is nothing to keep: give a rating, a correction or a winner.")
        return JSONResponse({"kept": True})

    @app.delete("/v1/feedback/users/{user}", response_model=None, responses=_gives(DeletedRows))
    async def forget(user: str) -> Response:
        return JSONResponse({"deleted_rows": await asyncio.to_thread(_needed(feedback).delete_user, user)})

    @app.get("/health", response_model=None, responses={**_gives(Health), 503: {"model": Health}})
    async def health() -> Response:
        lost = [m.name for m in models.loaded.values() if not m.engine.is_alive]
        if models.draining or lost:
            why = "shutting down" if models.draining else f"engine of {lost[0]} ended"
            return JSONResponse({"status": why}, 503)
        return JSONResponse({"status": "ok", "feedback": feedback is not None})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        for model in models.loaded.values():
            models.metrics.update(model.name, model.engine.stats)
        return Response(models.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        return resources.files("tenfold.serve.api").joinpath("chat.html").read_text()

    app.openapi = _document(app)  # type: ignore[method-assign]
    return app


def _gives(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """What the document says of an answer that is no error."""
    return {200: {"model": model}}


def _streamed(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The same where `stream: true` gives server-sent events instead."""
    text = {"type": "string"}
    event = {"type": "object", "properties": {"event": text, "data": text}, "required": ["data"]}
    return {200: {"model": model, "content": {"text/event-stream": {"itemSchema": event}}}}


def _document(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """FastAPI's document without the 422 that this application never answers: what it cannot read is 400."""
    written = app.openapi

    def document() -> dict[str, Any]:
        made = written()
        for operations in made["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        return made

    return document


def _needed(feedback: Feedback | None) -> Feedback:
    if feedback is None:
        raise ApiError(404, "This server keeps no feedback: start it with --feedback.")
    return feedback


async def until_disconnect(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`, which is cancelled as soon as the client is gone."""
    task = asyncio.create_task(work)

    async def watch() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.1)

    watcher = asyncio.create_task(watch())
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "The client closed the connection.")
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()


async def stream(items: AsyncGenerator[dict[str, Any]], named: bool = False) -> StreamingResponse:
    """Server-sent events. What goes wrong before the first is an ordinary error; later it is an event of its own."""
    first = await anext(items)

    async def events() -> AsyncIterator[str]:
        try:
            yield _event(first, named)
            async for item in items:
                yield _event(item, named)
            if not named:
                yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _event(error.body(), False)
        except (TenfoldError, EngineGone) as error:
            yield _event(error_body(503, str(error) or "The model's engine ended."), False)
        finally:
            await items.aclose()

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


def _event(item: dict[str, Any], named: bool) -> str:
    head = f"event: {item['type']}\n" if named else ""
    return f"{head}data: {json.dumps(item, ensure_ascii=False, separators=(',', ':')).translate(_LINE_ENDS)}\n\n"


class Gate:
    """Lets in requests that have a key, where keys are needed, and are not too large."""

    def __init__(self, app: ASGIApp, keys: Keys | None, body_bytes: int):
        self.app, self.keys, self.body_bytes = app, keys, body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        if self.keys is not None and scope["path"] not in _OPEN and scope["method"] != "OPTIONS":
            key = headers.get(b"authorization", b"").decode(errors="replace").removeprefix("Bearer ").strip()
            owner = self.keys.owner(key)
            if owner is None:
                return await self._refuse(send, 401, "A valid key is needed: send it as `Authorization: Bearer KEY`.")
            if (wait := self.keys.wait(owner)) > 0:
                return await self._refuse(send, 429, f"Too many requests with this key: the next may come in {wait:.0f} s.", wait)
            scope["tenfold_owner"] = owner
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.body_bytes:
            while (await receive()).get("more_body"):  # a client reads no answer while it still sends
                pass
            return await self._refuse(send, 413, f"The request has {int(length)} bytes: at most {self.body_bytes} are taken.")
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.body_bytes:
                raise ApiError(413, f"The request is larger than the {self.body_bytes} bytes that are taken.")
            return message

        return await self.app(scope, limited, send)

    async def _refuse(self, send: Send, status: int, message: str, retry_after: float = 0) -> None:
        headers = [(b"content-type", b"application/json")]
        if retry_after:
            headers.append((b"retry-after", str(max(1, round(retry_after))).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(error_body(status, message)).encode()})
