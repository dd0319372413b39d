"""`/v1/completions`: plain completions of one or several prompts."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from tenfold.serve.api.answer_types import CompletionAnswer
from tenfold.serve.api.budget import Place
from tenfold.serve.api.dependencies import Placed, ServedModels, streams
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.models import Models
from tenfold.serve.api.protocol import CompletionRequest
from tenfold.serve.api.routes.answers import Gathered, finite, head, new_id, usage
from tenfold.serve.api.routes.embeddings import encode, prompts_of
from tenfold.serve.api.served_model import OutputDelta, ServedModel
from tenfold.serve.api.split import unit
from tenfold.serve.api.streaming import cancel, stream, until_disconnect
from tenfold.serve.request import Request, Sampling, TokenLogprob
from tenfold.serve.text import TextStream

router = APIRouter()
BEGINNING = 64  # characters or tokens that identify a prompt of an anonymous user in an A/B test


@router.post("/v1/completions", **streams(CompletionAnswer))
async def plain_completions(body: CompletionRequest, request: HttpRequest, place: Placed, models: ServedModels) -> Response:
    completion = await until_disconnect(request, prepare(models, body, place))
    if body.stream:
        return await stream(request, chunks(completion))
    return JSONResponse(await until_disconnect(request, answer(completion)))


@dataclass
class Completion:
    """A completion request that is ready for the engine: a `Request` for each prompt."""

    body: CompletionRequest
    model: ServedModel
    prompts: list[str | list[int]]
    requests: list[Request]
    scores: list[list[TokenLogprob]] | None  # of each prompt's tokens after the first, if asked for
    id: str
    created: int


async def prepare(models: Models, body: CompletionRequest, place: Place) -> Completion:
    """Check a completion request and make its prompts. Raises ApiError or TenfoldError."""
    body.check_stream_options()
    if body.best_of not in (None, 0, body.n or 1):
        raise ApiError(400, "This server does not support best_of: leave it out, or give the value of n.", param="best_of")
    if body.prompt_logprobs is not None and body.stream:
        raise ApiError(400, "prompt_logprobs are not streamed: leave stream out.", param="prompt_logprobs")
    prompts = prompts_of(body.prompt, "prompt")
    asking = unit(place.caller.user(body.user), str(body.prompt[:BEGINNING]))
    model = await models.admit(body.model, place, len(prompts) * (body.n or 1), asking)
    encoded = await model.prompt(lambda: encode(model, prompts, "prompt", body.suffix))
    model.check_tokens(body.logit_bias or (), "logit_bias")
    grammar = await model.grammar(body.guided)
    name, requests = new_id("cmpl"), []
    for i, tokens in enumerate(encoded):
        wanted = 16 if body.max_tokens is None else body.max_tokens
        sampling = body.sampling(
            max_tokens=model.room(tokens, wanted, answers=wanted > 0),
            stop_tokens=model.text.stop_tokens,
            logprobs=body.logprobs,
            grammar=grammar,
        )
        requests.append(Request(f"{name}-{i}", tokens, sampling, owner=place.owner))
    return Completion(body, model, prompts, requests, await _scores(model, body, requests), name, int(time.time()))


async def _scores(model: ServedModel, body: CompletionRequest, requests: list[Request]) -> list[list[TokenLogprob]] | None:
    """The log-probabilities of each prompt's tokens after the first; None if they are not asked for."""
    count = body.logprobs if body.echo and body.prompt_logprobs is None else body.prompt_logprobs
    if count is None:
        return None
    asked = Sampling(logprobs=max(count, body.logprobs or 0))
    return await asyncio.gather(*(model.score(Request(f"{r.id}-prompt", r.tokens, asked, "score", r.owner)) for r in requests))


async def _deltas(completion: Completion) -> AsyncGenerator[tuple[int, OutputDelta], None]:
    """Yield the deltas of all prompts as they come, each with its prompt's number."""
    queue: asyncio.Queue[tuple[int, OutputDelta] | Exception | None] = asyncio.Queue()

    async def one(number: int, request: Request) -> None:
        try:
            async for delta in completion.model.generate(request, completion.body.stops):
                queue.put_nowait((number, delta))
            queue.put_nowait(None)
        except Exception as error:  # raised again where the deltas are read
            queue.put_nowait(error)

    tasks = [asyncio.create_task(one(i, r)) for i, r in enumerate(completion.requests)]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        await cancel(*tasks)


async def answer(completion: Completion) -> dict[str, Any]:
    """The whole answer as one object."""
    n = completion.requests[0].sampling.n
    gathered = [Gathered() for _ in range(n * len(completion.requests))]
    async for number, delta in _deltas(completion):
        gathered[number * n + delta.index].add(delta)
    # Log-probabilities and echoes contain tokens as text, which takes long for many tokens, so they are made in a thread.
    aside = completion.body.logprobs is not None or completion.body.echo or completion.scores
    choices = await asyncio.to_thread(_choices, completion, gathered) if aside else _choices(completion, gathered)
    return {**_head(completion), "choices": choices, "usage": usage(completion.requests, gathered)}


def _choices(completion: Completion, gathered: list[Gathered]) -> list[dict[str, Any]]:
    choices, n = [], completion.requests[0].sampling.n
    for i, g in enumerate(gathered):
        before = _echo(completion, i // n)
        logprobs = _logprobs(completion, [lp.token for lp in g.logprobs], g.logprobs, [len(before) + place for place in g.places])
        if completion.body.echo and logprobs:
            logprobs = {key: values + logprobs[key] for key, values in _echoed_logprobs(completion, i // n).items()}
        choice = {"index": i, "text": before + g.text, "logprobs": logprobs, "finish_reason": g.finish_reason}
        choices.append(choice | _prompt_logprobs(completion, i // n))
    return choices


async def chunks(completion: Completion) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the answer's chunks: an echo of the prompts if asked for, the text, and the usage if asked for."""
    start, n = _head(completion), completion.requests[0].sampling.n
    gathered = [Gathered() for _ in range(n * len(completion.requests))]
    echoes = [_echo(completion, number) for number in range(len(completion.requests))]
    options = completion.body.stream_options
    for i in range(len(gathered)) if completion.body.echo else ():
        read = await asyncio.to_thread(_echoed_logprobs, completion, i // n)
        yield {**start, "choices": [{"index": i, "text": echoes[i // n], "logprobs": read or None, "finish_reason": None}]}
    async for number, delta in _deltas(completion):
        i = number * n + delta.index
        gathered[i].add(delta)
        places = [len(echoes[number]) + place for place in delta.places]
        logprobs = _logprobs(completion, [lp.token for lp in delta.logprobs], delta.logprobs, places)
        yield {**start, "choices": [{"index": i, "text": delta.text, "logprobs": logprobs, "finish_reason": delta.finish_reason}]}
    if options and options.include_usage:
        yield {**start, "choices": [], "usage": usage(completion.requests, gathered)}


def _head(completion: Completion) -> dict[str, Any]:
    return head(completion.id, "text_completion", completion.created, completion.model)


def _echo(completion: Completion, number: int) -> str:
    if not completion.body.echo:
        return ""
    prompt = completion.prompts[number]
    return prompt if isinstance(prompt, str) else completion.model.text.tokenizer.decode(prompt)


def _echoed_logprobs(completion: Completion, number: int) -> dict[str, list[Any]]:
    """Log-probabilities of a prompt, None for its first token; an empty dictionary if the request does not ask for them."""
    if completion.scores is None or completion.body.logprobs is None:
        return {}
    tokens = completion.requests[number].tokens
    _, places = TextStream(completion.model.text.tokenizer, []).push(tokens)
    logprobs = _logprobs(completion, tokens, [None, *completion.scores[number]], places)
    assert logprobs is not None
    return logprobs


def _logprobs(
    completion: Completion, tokens: list[int], logprobs: Sequence[TokenLogprob | None], places: list[int]
) -> dict[str, list[Any]] | None:
    """Log-probabilities in the form of plain completions; None if the request does not ask for them."""
    if completion.body.logprobs is None:
        return None
    return {
        "tokens": [_token_text(completion.model, token) for token in tokens],
        "token_logprobs": [lp and finite(lp.logprob) for lp in logprobs],
        "top_logprobs": [lp and _top_logprobs(completion, lp) for lp in logprobs],
        "text_offset": places[: len(tokens)],
    }


def _top_logprobs(completion: Completion, lp: TokenLogprob) -> dict[str, float]:
    """The most likely tokens, and the token itself. Of tokens with the same text, the most likely one is kept."""
    found: dict[str, float] = {}
    for token, value in [*lp.top[: completion.body.logprobs], (lp.token, lp.logprob)]:
        found.setdefault(_token_text(completion.model, token), finite(value))
    return found


def _token_text(model: ServedModel, token: int) -> str:
    """A token as text; in OpenAI's form `bytes:...` if it is not valid UTF-8."""
    raw = model.text.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _prompt_logprobs(completion: Completion, number: int) -> dict[str, Any]:
    """vLLM's field `prompt_logprobs`, if it is asked for."""
    count = completion.body.prompt_logprobs
    if count is None or completion.scores is None:
        return {}

    def entry(lp: TokenLogprob) -> dict[str, Any]:
        likeliest = dict([*lp.top[:count], (lp.token, lp.logprob)])
        return {str(t): {"logprob": finite(v), "decoded_token": _token_text(completion.model, t)} for t, v in likeliest.items()}

    return {"prompt_logprobs": [None, *map(entry, completion.scores[number])]}
