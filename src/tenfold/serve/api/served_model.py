"""A loaded model as the API uses it: makes prompts, checks them, and streams the text of its backend's answers."""

import asyncio
import copy
import hashlib
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from tenfold.model.io.huggingface import weights_hash
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.metrics import Metrics
from tenfold.serve.backends.backend import Backend, SeeingBackend
from tenfold.serve.options import EngineOptions, Limits
from tenfold.serve.pictures import Sight
from tenfold.serve.request import FinishReason, Output, Request, TokenLogprob
from tenfold.serve.sandbox.grammars import GrammarSource
from tenfold.serve.sandbox.sandbox import Sandbox, SandboxBusy
from tenfold.serve.text import TextSide, TextStream
from tenfold.spec.errors import TenfoldError

T = TypeVar("T")
_RENDER_SECONDS = 30.0  # most seconds for making a prompt's tokens


@dataclass
class OutputDelta:
    """New text of continuation `index`, and the tokens that it was decoded from; the last delta of each has a finish reason."""

    index: int
    text: str
    tokens: list[int]
    logprobs: list[TokenLogprob]  # of each token, and of a stop token that ended the answer
    places: list[int]  # the character offsets in the answer's text at which those begin
    finish_reason: FinishReason | None
    cached_tokens: int
    stop: str = ""  # the stop string that ended the answer


@dataclass
class Activity:
    """The state of a model in memory, shared by its names (the model's and its adapters')."""

    leaving: bool = False  # it finishes its requests and takes no new ones
    used: float = field(default_factory=time.monotonic)  # when it was last used
    preparing: int = 0  # requests whose prompt or grammar is being made


@dataclass(eq=False)
class ServedModel:
    """A model's text side and backend under a name: the model's, or that of one of its adapters."""

    name: str
    options: EngineOptions
    text: TextSide
    backend: Backend
    limits: Limits
    metrics: Metrics
    adapter: str = ""
    activity: Activity = field(default_factory=Activity)
    sandbox: Sandbox = field(init=False)  # renders the model's template and tries grammars
    _checkpoints: dict[str, str] = field(default_factory=dict)  # hashes of the weights, by adapter

    def __post_init__(self) -> None:
        self.sandbox = Sandbox(self.text)

    def with_adapter(self, name: str) -> "ServedModel":
        """The same loaded model with one of its adapters."""
        found = copy.copy(self)
        found.name = found.adapter = name
        return found

    @property
    def sight(self) -> Sight | None:
        """How the model reads images; None if it does not."""
        return self.backend.sight if isinstance(self.backend, SeeingBackend) else None

    @property
    def idle(self) -> bool:
        """Whether it has no requests, and has had none for `idle_seconds`."""
        busy = self.backend.in_flight or self.activity.preparing
        return not busy and time.monotonic() - self.activity.used > self.limits.idle_seconds

    async def checkpoint(self) -> str:
        """SHA-256 of the weights' files, and of the adapters' in use; computed once."""
        if self.adapter not in self._checkpoints:
            adapter = self.options.adapters().get(self.adapter)
            paths = [path for path in (self.options.path, self.options.adapter, adapter) if path is not None]
            self._checkpoints[self.adapter] = await asyncio.to_thread(_hash_of, paths)
        return self._checkpoints[self.adapter]

    async def stop_when_idle(self) -> None:
        """Stop the backend as soon as the model is idle, or at once if this is cancelled."""
        try:
            while not self.idle:
                await asyncio.sleep(0.05)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Stop the sandbox and the backend."""
        await self.sandbox.stop()
        await asyncio.to_thread(self.backend.stop)

    async def chat_text(self, messages: list[dict[str, Any]], variables: dict[str, Any], *, continues: bool = False) -> str:
        """A conversation as the template writes it; with `continues`, up to the end of its last message's text.

        Raises TenfoldError if the template refuses the conversation or fails, or does not write the last message.
        """
        end = secrets.token_hex(16) if continues else ""  # appended to the last message, to find its end in the template's text
        if continues:
            last = messages[-1]
            messages = [*messages[:-1], {**last, "content": last["content"] + end}]
            variables = {**variables, "add_generation_prompt": False}
        text = await self._in_sandbox(self.sandbox.render(messages, variables))
        if continues:
            text, found, _ = text.rpartition(end)
            if not found:
                raise TenfoldError("The model's chat template does not write the last message, which therefore cannot go on.")
        return text

    async def grammar(self, source: GrammarSource | None) -> str | None:
        """A grammar that the backend can compile; None for no source. Raises TenfoldError if it cannot be compiled."""
        return None if source is None else await self._in_sandbox(self.sandbox.prove(source))

    async def _in_sandbox(self, work: Awaitable[T]) -> T:
        """Wait for the sandbox. Raises ApiError 503 if it is too busy."""
        self.activity.preparing += 1
        try:
            return await work
        except SandboxBusy:
            raise ApiError(
                503, "The server has too many templates and grammars to process: try again later.", retry_after=5
            ) from None
        finally:
            self._prepared()

    async def prompt(self, make: Callable[[], T]) -> T:
        """The result of `make` in a thread, since tokenizers can take long. Raises ApiError 400 after _RENDER_SECONDS."""
        self.activity.preparing += 1
        try:
            return await asyncio.wait_for(asyncio.to_thread(make), _RENDER_SECONDS)
        except TimeoutError:
            raise ApiError(400, f"The prompt could not be made into tokens within {_RENDER_SECONDS:.0f} seconds.") from None
        finally:
            self._prepared()

    def _prepared(self) -> None:
        self.activity.preparing -= 1
        self.activity.used = time.monotonic()

    def check_tokens(self, tokens: Iterable[int], what: str) -> None:
        """Raises ApiError 400 if one of `tokens`, the field `what`, is not in the model's vocabulary."""
        vocab = self.text.tokenizer.get_vocab_size()
        if not all(0 <= token < vocab for token in tokens):
            raise ApiError(400, f"{what} has a token outside the vocabulary of {vocab}.", param=what)

    def room(self, tokens: list[int], wanted: int | None, answers: bool = True) -> int:
        """The most tokens that an answer may have: `wanted`, or all that fit.

        Raises ApiError 400 if the prompt is empty or too long. `answers` is whether there is an answer at all.
        """
        context = self.backend.max_model_len
        room = context - len(tokens)
        if not tokens:
            raise ApiError(400, "The prompt is empty: give at least one token.")
        if room < answers or (wanted is not None and wanted > room and answers):
            asked = "" if wanted is None else f" and the answer up to {wanted}"
            over = len(tokens) + (wanted or int(answers)) - context
            raise ApiError(
                400,
                f"The prompt has {len(tokens)} tokens{asked}: {over} too many for the context of {context}.",
                code="context_length_exceeded",
                param="messages",
            )
        return room if wanted is None else wanted

    async def generate(self, request: Request, stops: list[str], keep_special: bool = False) -> AsyncGenerator[OutputDelta, None]:
        """Yield the text of the answers to a request as it comes, up to a stop string of `stops`.

        With `keep_special` the text has special tokens. Raises ApiError if the backend fails or after `timeout_seconds`.
        """
        n, began, written = request.sampling.n, time.monotonic(), 0
        last = [0.0] * n  # when tokens of each answer came
        streams = [TextStream(self.text.tokenizer, stops, keep_special) for _ in range(n)]
        unfinished, end = set(range(n)), began + self.limits.timeout_seconds
        outputs = self.backend.generate(self._with_adapter(request))
        ended = "abort"  # unless there is an error, the client has left
        try:
            while unfinished:
                output = await self._next(outputs, end)
                if output.index not in unfinished or not (output.tokens or output.finish_reason):
                    continue
                delta = _as_delta(output, streams[output.index])
                if delta.tokens:
                    now, written = time.monotonic(), written + len(delta.tokens)
                    self.metrics.token(self.name, began, last[output.index], now)
                    last[output.index] = now
                if delta.finish_reason:
                    unfinished.discard(delta.index)
                    self.metrics.success.labels(self.name, delta.finish_reason).inc()
                yield delta
        except ApiError:
            ended = "error"
            raise
        finally:
            await outputs.aclose()
            if unfinished:
                self.metrics.success.labels(self.name, ended).inc(len(unfinished))
            self.metrics.end(self.name, time.monotonic() - began, len(request.tokens), written)

    async def _next(self, outputs: AsyncGenerator[Output, None], end: float) -> Output:
        """The next output. Raises ApiError at the time `end`, and for an output with an error."""
        try:
            output = await asyncio.wait_for(anext(outputs), end - time.monotonic())
        except TimeoutError:
            raise _timed_out(self.limits.timeout_seconds) from None
        if output.error is not None:
            raise ApiError(400, output.error)
        return output

    def _with_adapter(self, request: Request) -> Request:
        return replace(request, adapter=self.adapter) if self.adapter else request

    async def score(self, request: Request) -> list[TokenLogprob]:
        """The log-probability of each token of a request after the first. Raises ApiError after `timeout_seconds`."""
        try:
            return await asyncio.wait_for(self.backend.score(self._with_adapter(request)), self.limits.timeout_seconds)
        except TimeoutError:
            raise _timed_out(self.limits.timeout_seconds) from None

    async def embed(self, request: Request) -> list[float]:
        """The embedding of a request's tokens. Raises ApiError if the backend fails or after `timeout_seconds`."""
        try:
            return await asyncio.wait_for(self._embedding(request), self.limits.timeout_seconds)
        except TimeoutError:
            raise _timed_out(self.limits.timeout_seconds) from None

    async def _embedding(self, request: Request) -> list[float]:
        async for output in self.backend.generate(self._with_adapter(request)):
            if output.error is not None:
                raise ApiError(400, output.error)
            if output.embedding is not None:
                return output.embedding
        raise ApiError(500, "The backend gave no embedding.")


def _hash_of(paths: list[Path]) -> str:
    """One hash of weights and adapters."""
    hashes = [weights_hash(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _timed_out(seconds: float) -> ApiError:
    return ApiError(504, f"The answer took longer than {seconds:.0f} seconds.")


def _as_delta(output: Output, stream: TextStream) -> OutputDelta:
    """The delta of an output.

    Only this function decides which tokens, with their log-probabilities, count as the answer: those up to a stop string.
    """
    text, places = stream.push(output.tokens)
    tokens, logprobs, finish = output.tokens[: len(places)], output.logprobs, output.finish_reason
    if stream.stopped:
        finish, logprobs = "stop", logprobs[: len(places)]
    elif finish:
        text += stream.rest()
        places.append(stream.length)
    return OutputDelta(output.index, text, tokens, logprobs, places, finish, output.cached_tokens, stream.stopped)
