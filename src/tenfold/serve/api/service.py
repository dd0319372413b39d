"""The models of a server: loaded when asked for, the least recently used unloaded, and text from them as it comes."""

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.metrics import Metrics
from tenfold.serve.api.text import TextSide, TextStream, read_text_side
from tenfold.serve.backends.vllm import VllmServer
from tenfold.serve.backends.worker import EngineProcess
from tenfold.serve.engine.request import FinishReason, Request, TokenLogprob
from tenfold.serve.options import EngineOptions, Limits

T = TypeVar("T")
_RENDER_SECONDS = 30.0
_UNUSED_SECONDS = 1.0  # a request that asked for a model has sent it its prompt by then
_PATIENCE_SECONDS = 10.0  # how long a model that is not loaded waits for another to fall idle before that takes nothing new


@dataclass
class ServedModel:
    """A loaded model: its text side and its engine."""

    name: str
    options: EngineOptions
    text: TextSide
    engine: EngineProcess | VllmServer
    leaving: bool = False
    used: float = field(default_factory=time.monotonic)
    _checkpoint: str = ""

    @property
    def idle(self) -> bool:
        """Whether nobody waits for its answer, or is about to."""
        return not self.engine.in_flight and time.monotonic() - self.used > _UNUSED_SECONDS

    async def checkpoint(self) -> str:
        """SHA-256 over the weights' files, read once."""
        if not self._checkpoint:
            self._checkpoint = await asyncio.to_thread(_hash_of, self.options.path)
        return self._checkpoint


def _hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


@dataclass
class OutputDelta:
    """New text of continuation `index`; the last piece of each has a finish reason."""

    index: int
    text: str
    tokens: list[int]
    logprobs: list[TokenLogprob]
    finish_reason: FinishReason | None
    cached_tokens: int


class Models:
    """Models by name. The first stands for an empty name, and for every unknown one where `any_name`."""

    def __init__(self, options: dict[str, EngineOptions], limits: Limits, metrics: Metrics, any_name: bool = False):
        self.options, self.limits, self.metrics, self.any_name = options, limits, metrics, any_name
        self.loaded: dict[str, ServedModel] = {}  # the least recently used first
        self.created = int(time.time())
        self.draining = False
        self._loading = asyncio.Lock()
        self._waiting = 0

    def resolve(self, name: str) -> str:
        """The name of the model that answers to `name`. Raises ApiError 404."""
        if name in self.options:
            return name
        first = next(iter(self.options))
        if not name or self.any_name:
            return first
        raise ApiError(
            404, f"There is no model {name!r}: this server has {', '.join(self.options)}.", code="model_not_found", param="model"
        )

    async def get(self, name: str) -> ServedModel:
        """The model, loaded now where it is not: one at a time, while those that are loaded go on answering.

        Raises ApiError for an unknown one, too many that wait for one to load, or a server that is closing.
        """
        if self.draining:
            raise ApiError(503, "The server is shutting down and takes no new requests.", retry_after=10)
        name = self.resolve(name)
        if (found := self._ready(name)) is not None:
            return found
        if self._waiting >= self.limits.max_queue:
            self.metrics.rejections.labels(name).inc()
            raise ApiError(429, f"{self._waiting} requests wait for models to load: try again later.", retry_after=10)
        self._waiting += 1
        try:
            async with self._loading:
                if (found := self._ready(name)) is None:
                    await self._make_room()
                    found = self.loaded[name] = await self._load(name, self.options[name])
                return found
        finally:
            self._waiting -= 1

    def _ready(self, name: str) -> ServedModel | None:
        """The model if it can take a request now; it counts as the most recently used from here on."""
        found = self.loaded.get(name)
        if found is None or found.leaving:
            return None
        if not found.engine.is_alive:
            del self.loaded[name]
            return None
        found.used = time.monotonic()
        self.loaded[name] = self.loaded.pop(name)
        return found

    async def swap(self, name: str, path: Path) -> ServedModel:
        """Serve `name` from another path from now on; what the old one is answering it answers in full."""
        name = self.resolve(name)
        async with self._loading:
            new = await self._load(name, replace(self.options[name], path=path))
            old, self.loaded[name], self.options[name] = self.loaded.get(name), new, new.options
        if old is not None:
            self._retiring = asyncio.create_task(_stop_when_idle(old))
        return new

    async def _load(self, name: str, options: EngineOptions) -> ServedModel:
        engine = VllmServer(options) if options.backend == "vllm" else EngineProcess(options)
        text, _ = await asyncio.gather(asyncio.to_thread(read_text_side, options.path), engine.start())
        return ServedModel(name, options, replace(text, limit=engine.context), engine)

    async def _make_room(self) -> None:
        """Unload what is over the limit: the least recently used that is idle, and after some patience whether idle or not.

        That one then answers what it has begun; who asks for it anew waits for its turn, as this one did.
        """
        patient_until = time.monotonic() + _PATIENCE_SECONDS
        while len(self.loaded) >= self.limits.max_loaded:
            gone = next((m for m in self.loaded.values() if m.idle or not m.engine.is_alive), None)
            if gone is not None:
                del self.loaded[gone.name]
                await asyncio.to_thread(gone.engine.stop)
                continue
            if time.monotonic() > patient_until:
                next(iter(self.loaded.values())).leaving = True
            await asyncio.sleep(0.05)

    async def drain(self, seconds: float) -> None:
        """Take nothing new, wait for what is in flight, and stop all engines."""
        self.draining = True
        end = time.monotonic() + seconds
        while any(m.engine.in_flight for m in self.loaded.values()) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        for model in self.loaded.values():
            await asyncio.to_thread(model.engine.stop)

    async def prompt(self, make: Callable[[], T]) -> T:
        """Tokens made off the event loop: templates and tokenizers may take long over what they are given."""
        try:
            return await asyncio.wait_for(asyncio.to_thread(make), _RENDER_SECONDS)
        except TimeoutError:
            raise ApiError(400, f"The prompt could not be made into tokens within {_RENDER_SECONDS:.0f} seconds.") from None

    def check_tokens(self, model: ServedModel, tokens: Iterable[int], what: str) -> None:
        """Raises ApiError where a token is not in the model's vocabulary."""
        vocab = model.text.tokenizer.get_vocab_size()
        if not all(0 <= token < vocab for token in tokens):
            raise ApiError(400, f"{what} has a token outside the vocabulary of {vocab}.", param=what)

    def admit(self, model: ServedModel, tokens: list[int], wanted: int | None, answers: bool = True) -> int:
        """How many tokens an answer may have: `wanted`, or all that fit. Raises ApiError where the prompt or the queue is full."""
        context = model.engine.context
        room = context - len(tokens)
        if not tokens:
            raise ApiError(400, "The prompt is empty: give at least one token.")
        if room < answers or (wanted is not None and wanted > room and answers):
            asked = "" if wanted is None else f" and the answer up to {wanted}"
            over = len(tokens) + (wanted or 1) - context
            raise ApiError(
                400,
                f"The prompt has {len(tokens)} tokens{asked}: {over} too many for the context of {context}.",
                code="context_length_exceeded",
                param="messages",
            )
        if model.engine.in_flight >= self.limits.max_queue:
            self.metrics.rejections.labels(model.name).inc()
            raise ApiError(429, f"The queue is full with {self.limits.max_queue} requests: try again later.", retry_after=2)
        return room if wanted is None else wanted

    async def generate(
        self, model: ServedModel, request: Request, stops: list[str], keep_special: bool = False
    ) -> AsyncGenerator[OutputDelta, None]:
        """Text of a request as it comes, and its metrics. Raises ApiError where the engine refuses or time runs out."""
        p, metrics, name = request.sampling, self.metrics, model.name
        streams = [TextStream(model.text.tokenizer, stops, keep_special) for _ in range(p.n)]
        open_, began, last, written = set(range(p.n)), time.monotonic(), 0.0, 0
        end = began + self.limits.request_seconds
        outputs = model.engine.generate(request)
        try:
            while open_:
                try:
                    output = await asyncio.wait_for(anext(outputs), end - time.monotonic())
                except TimeoutError:
                    raise ApiError(504, f"The answer took longer than {self.limits.request_seconds:.0f} seconds.") from None
                if output.error is not None:
                    raise ApiError(400, output.error)
                if output.index not in open_ or not (output.tokens or output.finish_reason):
                    continue
                now = time.monotonic()
                if output.tokens:
                    (metrics.between if last else metrics.first).labels(name).observe(now - (last or began))
                    last = now
                stream, finish = streams[output.index], output.finish_reason
                text = stream.push(output.tokens)
                if stream.stopped:
                    finish = "stop"
                elif finish:
                    text += stream.rest()
                written += len(output.tokens)
                if finish:
                    open_.discard(output.index)
                    metrics.success.labels(name, finish).inc()
                yield OutputDelta(output.index, text, output.tokens, output.logprobs, finish, output.cached_tokens)
        finally:
            await outputs.aclose()
            metrics.whole.labels(name).observe(time.monotonic() - began)
            metrics.prompt_tokens.labels(name).inc(len(request.tokens))
            metrics.generation_tokens.labels(name).inc(written)
            metrics.prompt_length.labels(name).observe(len(request.tokens))
            metrics.output_length.labels(name).observe(written)

    async def embed(self, model: ServedModel, request: Request) -> list[float]:
        """The embedding of a request's tokens."""
        async for output in model.engine.generate(request):
            if output.error is not None:
                raise ApiError(400, output.error)
            if output.embedding is not None:
                return output.embedding
        raise ApiError(500, "The engine gave no embedding.")


async def _stop_when_idle(model: ServedModel) -> None:
    while model.engine.in_flight:
        await asyncio.sleep(0.05)
    await asyncio.to_thread(model.engine.stop)


def new_id(kind: str) -> str:
    """A name that no other answer has."""
    return f"{kind}-{uuid.uuid4().hex}"


def facts(value: Any) -> dict[str, Any]:
    """The fields of a sampling that were set, for the record."""
    return {k: sorted(v) if isinstance(v, frozenset) else v for k, v in vars(value).items()}
