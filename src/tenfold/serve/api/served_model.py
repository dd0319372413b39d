"""A loaded model as the API sees it: prompts checked and admitted, and text from its backend as it comes."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar
from uuid import uuid4

from tenfold.model.io.huggingface import weights_hash
from tenfold.serve.api.budget import Budget, Place
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.metrics import Metrics
from tenfold.serve.backends.backend import Backend
from tenfold.serve.options import EngineOptions, Limits
from tenfold.serve.request import FinishReason, Output, Request, TokenLogprob
from tenfold.serve.sandbox.grammars import GrammarSource
from tenfold.serve.sandbox.sandbox import Sandbox, SandboxBusy
from tenfold.serve.text import TextSide, TextStream

T = TypeVar("T")
_RENDER_SECONDS = 30.0


@dataclass
class OutputDelta:
    """New text of continuation `index`; the last delta of each has a finish reason."""

    index: int
    text: str
    tokens: list[int]
    logprobs: list[TokenLogprob]
    finish_reason: FinishReason | None
    cached_tokens: int


@dataclass(eq=False)
class ServedModel:
    """A model's text side and its backend, under a name."""

    name: str
    options: EngineOptions
    text: TextSide
    backend: Backend
    limits: Limits
    metrics: Metrics
    leaving: bool = False  # it finishes what it began and takes nothing new
    used: float = field(default_factory=time.monotonic)
    preparing: int = 0  # prompts that are being made into tokens
    _checkpoint: str = ""

    def __post_init__(self) -> None:
        self.queue = Budget(self.limits.max_queue, self.limits.key_share)  # sequences

    @property
    def idle(self) -> bool:
        """Whether nobody waits for its answer, or is about to send a prompt."""
        return not self.backend.in_flight and not self.preparing and time.monotonic() - self.used > self.limits.idle_seconds

    async def checkpoint(self) -> str:
        """SHA-256 over the files of the weights, read once."""
        if not self._checkpoint:
            self._checkpoint = await asyncio.to_thread(weights_hash, self.options.path)
        return self._checkpoint

    async def stop_when_idle(self) -> None:
        """Stop the backend once nobody needs it any more, or at once if this is cancelled."""
        try:
            while not self.idle:
                await asyncio.sleep(0.05)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """End the backend, and the sandbox if there is one."""
        if "sandbox" in self.__dict__:
            await self.sandbox.stop()
        await asyncio.to_thread(self.backend.stop)

    @cached_property
    def sandbox(self) -> Sandbox:
        """Where the model's template is rendered and grammars are proven."""
        return Sandbox(self.text)

    async def chat_prompt(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """Tokens of a conversation. Raises TenfoldError if the template refuses it or fails."""
        text = await self._outside(self.sandbox.render(messages, tools=tools))
        return await self.prompt(lambda: self.text.ids(text))

    async def grammar(self, source: GrammarSource | None) -> str | None:
        """A grammar that the backend can compile. Raises TenfoldError if there can be none."""
        return None if source is None else await self._outside(self.sandbox.prove(source))

    async def _outside(self, work: Awaitable[T]) -> T:
        """What the sandbox gives. Raises ApiError 503 if it is too busy."""
        self.preparing += 1
        try:
            return await work
        except SandboxBusy:
            raise ApiError(503, "The server has too many templates and grammars to read: try again later.", retry_after=5) from None
        finally:
            self.preparing, self.used = self.preparing - 1, time.monotonic()

    async def prompt(self, make: Callable[[], T]) -> T:
        """Tokens made off the event loop, since templates and tokenizers can take long."""
        self.preparing += 1
        try:
            return await asyncio.wait_for(asyncio.to_thread(make), _RENDER_SECONDS)
        except TimeoutError:
            raise ApiError(400, f"The prompt could not be made into tokens within {_RENDER_SECONDS:.0f} seconds.") from None
        finally:
            self.preparing, self.used = self.preparing - 1, time.monotonic()

    def check_tokens(self, tokens: Iterable[int], what: str) -> None:
        """Raises ApiError if a token is not in the model's vocabulary."""
        vocab = self.text.tokenizer.get_vocab_size()
        if not all(0 <= token < vocab for token in tokens):
            raise ApiError(400, f"{what} has a token outside the vocabulary of {vocab}.", param=what)

    def admit(self, place: Place, sequences: int) -> None:
        """Give a request its places in the queue, until it is answered. Raises ApiError where there are too few."""
        most, each = self.queue.most, self.queue.each
        if sequences > each:
            raise ApiError(400, f"The request asks for {sequences} answers at once: at most {each} are taken.")
        if not self.queue.has_room(place.owner, sequences):
            self.metrics.rejections.labels(self.name).inc()
            raise ApiError(429, f"The queue is full: at most {most} answers wait, {each} of one key: try later.", retry_after=2)
        place.holds.enter_context(self.queue.holding(place.owner, sequences))

    def room(self, tokens: list[int], wanted: int | None, answers: bool = True) -> int:
        """How many tokens an answer may have: `wanted`, or all that fit. Raises ApiError if the prompt is too long."""
        context = self.backend.max_model_len
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
        return room if wanted is None else wanted

    async def generate(self, request: Request, stops: list[str], keep_special: bool = False) -> AsyncGenerator[OutputDelta, None]:
        """Text of a request as it comes. Raises ApiError if the backend refuses or time runs out."""
        n, began, last, written = request.sampling.n, time.monotonic(), 0.0, 0
        streams = [TextStream(self.text.tokenizer, stops, keep_special) for _ in range(n)]
        unfinished, end = set(range(n)), began + self.limits.timeout_seconds
        outputs = self.backend.generate(request)
        try:
            while unfinished:
                output = await self._next(outputs, end)
                if output.index not in unfinished or not (output.tokens or output.finish_reason):
                    continue
                if output.tokens:
                    now, written = time.monotonic(), written + len(output.tokens)
                    self.metrics.token(self.name, began, last, now)
                    last = now
                stream, finish = streams[output.index], output.finish_reason
                text = stream.push(output.tokens)
                if stream.stopped:
                    finish = "stop"
                elif finish:
                    text += stream.rest()
                if finish:
                    unfinished.discard(output.index)
                    self.metrics.success.labels(self.name, finish).inc()
                yield OutputDelta(output.index, text, output.tokens, output.logprobs, finish, output.cached_tokens)
        finally:
            await outputs.aclose()
            self.metrics.end(self.name, time.monotonic() - began, len(request.tokens), written)

    async def _next(self, outputs: AsyncGenerator[Output, None], end: float) -> Output:
        """The next output before the time `end`."""
        try:
            output = await asyncio.wait_for(anext(outputs), end - time.monotonic())
        except TimeoutError:
            raise ApiError(504, f"The answer took longer than {self.limits.timeout_seconds:.0f} seconds.") from None
        if output.error is not None:
            raise ApiError(400, output.error)
        return output

    async def score(self, tokens: list[int], owner: str) -> list[TokenLogprob]:
        """The log-probability of each token after the first, beside the likeliest in its place. Raises ApiError where it cannot."""
        async for output in self.backend.generate(Request(f"score-{uuid4().hex}", tokens, task="score", owner=owner)):
            if output.scores is None or output.likeliest is None:
                raise ApiError(400, output.error or "The backend gave no log-probabilities of the prompt.")
            found = zip(tokens[1:], output.scores, output.likeliest, strict=True)
            return [TokenLogprob(token, score, [top]) for token, score, top in found]
        raise ApiError(500, "The backend gave no log-probabilities of the prompt.")

    async def embed(self, request: Request) -> list[float]:
        """The embedding of a request's tokens."""
        async for output in self.backend.generate(request):
            if output.error is not None:
                raise ApiError(400, output.error)
            if output.embedding is not None:
                return output.embedding
        raise ApiError(500, "The backend gave no embedding.")
