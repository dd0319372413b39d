"""`/v1/completions`: plain completions of one prompt or several."""

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from openai.types import Completion as CompletionAnswer

from tenfold.serve.api.budget import Place
from tenfold.serve.api.dependencies import Placed, ServedModels, streams
from tenfold.serve.api.models import Models
from tenfold.serve.api.protocol import CompletionRequest
from tenfold.serve.api.routes.answers import Gathered, finite, head, new_id, token_text, usage
from tenfold.serve.api.routes.embeddings import encode, prompts_of
from tenfold.serve.api.served_model import OutputDelta, ServedModel
from tenfold.serve.api.split import unit
from tenfold.serve.api.streaming import cancel, stream, until_disconnect
from tenfold.serve.request import Request, TokenLogprob

router = APIRouter()
BEGINNING = 64  # characters or tokens by which a prompt of nobody named is known


@router.post("/v1/completions", **streams(CompletionAnswer))
async def plain_completions(body: CompletionRequest, request: HttpRequest, place: Placed, models: ServedModels) -> Response:
    completion = await until_disconnect(request, prepare(models, body, place))
    if body.stream:
        return await stream(request, chunks(completion))
    return JSONResponse(await until_disconnect(request, answer(completion)))


@dataclass
class Completion:
    """A request for each prompt."""

    body: CompletionRequest
    model: ServedModel
    prompts: list[str | list[int]]
    requests: list[Request]
    id: str
    created: int


async def prepare(models: Models, body: CompletionRequest, place: Place) -> Completion:
    """Check a completion request. Raises ApiError or TenfoldError in one sentence."""
    body.check_stream_options()
    model = await models.get(body.model, unit(place.caller.user(body.user), str(body.prompt[:BEGINNING])))
    prompts = prompts_of(body.prompt, "prompt")
    model.admit(place, len(prompts) * (body.n or 1))
    encoded = await model.prompt(lambda: encode(model, prompts, "prompt", body.suffix))
    model.check_tokens(body.logit_bias or (), "logit_bias")
    grammar = await model.grammar(body.guided)
    name, requests = new_id("cmpl"), []
    for i, tokens in enumerate(encoded):
        sampling = body.sampling(
            max_tokens=model.room(tokens, 16 if body.max_tokens is None else body.max_tokens),
            stop_tokens=model.text.stop_tokens,
            logprobs=body.logprobs,
            grammar=grammar,
        )
        if body.echo and body.logprobs is not None and body.max_tokens == 1:  # it is the prompt that is asked about
            sampling = replace(sampling, ignore_stop=True)
        requests.append(Request(f"{name}-{i}", tokens, sampling, owner=place.owner))
    return Completion(body, model, prompts, requests, name, int(time.time()))


async def _deltas(completion: Completion) -> AsyncGenerator[tuple[int, OutputDelta], None]:
    """Deltas of all prompts as they come, with the number of the prompt."""
    queue: asyncio.Queue[tuple[int, OutputDelta] | Exception | None] = asyncio.Queue()

    async def one(number: int, request: Request) -> None:
        try:
            async for delta in completion.model.generate(request, completion.body.stops):
                queue.put_nowait((number, delta))
            queue.put_nowait(None)
        except Exception as error:  # it is raised where the deltas are read
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
    prompts = await _prompt_logprobs(completion)
    # Log-probabilities and echoes have tokens as text, which takes long for many.
    aside = completion.body.logprobs is not None or completion.body.echo
    choices = await asyncio.to_thread(_choices, completion, gathered, prompts) if aside else _choices(completion, gathered, prompts)
    return {**_head(completion), "choices": choices, "usage": usage(completion.requests, gathered)}


async def _prompt_logprobs(completion: Completion) -> list[list[TokenLogprob]]:
    """Those of each prompt, where it is echoed and they are asked for."""
    if completion.body.logprobs is None or not completion.body.echo:
        return []
    return [await completion.model.score(request.tokens, request.owner) for request in completion.requests]


def _choices(completion: Completion, gathered: list[Gathered], prompts: list[list[TokenLogprob]]) -> list[dict[str, Any]]:
    choices, n = [], completion.requests[0].sampling.n
    for i, g in enumerate(gathered):
        before = _echo(completion, i // n)
        logprobs = _logprobs(completion, g.logprobs, len(before))
        if logprobs is not None and prompts:
            logprobs = _after(completion, i // n, prompts[i // n], logprobs)
        choices.append({"index": i, "text": before + g.text, "logprobs": logprobs, "finish_reason": g.finish_reason})
    return choices


def _after(completion: Completion, number: int, prompt: list[TokenLogprob], answer: dict[str, Any]) -> dict[str, Any]:
    """The log-probabilities of an answer after those of its prompt, whose first token is given: OpenAI's type has no null."""
    begins = token_text(completion.model, completion.requests[number].tokens[0])
    shown = _echo(completion, number).startswith(begins)  # a token that begins every text is not
    before = _logprobs(completion, prompt, len(begins) * shown)
    assert before is not None
    start: dict[str, list[Any]] = {"tokens": [begins], "token_logprobs": [0.0], "top_logprobs": [{}], "text_offset": [0]}
    return {key: start[key] + before[key] + answer[key] for key in start}


async def chunks(completion: Completion) -> AsyncGenerator[dict[str, Any], None]:
    """The answer piece by piece."""
    start, n = _head(completion), completion.requests[0].sampling.n
    gathered = [Gathered() for _ in range(n * len(completion.requests))]
    options = completion.body.stream_options
    async for number, delta in _deltas(completion):
        i = number * n + delta.index
        text = delta.text if gathered[i].first_token else _echo(completion, number) + delta.text
        gathered[i].add(delta)
        logprobs = _logprobs(completion, delta.logprobs, 0)
        yield {**start, "choices": [{"index": i, "text": text, "logprobs": logprobs, "finish_reason": delta.finish_reason}]}
    if options and options.include_usage:
        yield {**start, "choices": [], "usage": usage(completion.requests, gathered)}


def _head(completion: Completion) -> dict[str, Any]:
    return head(completion.id, "text_completion", completion.created, completion.model)


def _echo(completion: Completion, number: int) -> str:
    if not completion.body.echo:
        return ""
    prompt = completion.prompts[number]
    return prompt if isinstance(prompt, str) else completion.model.text.tokenizer.decode(prompt)


def _logprobs(completion: Completion, logprobs: list[TokenLogprob], offset: int) -> dict[str, Any] | None:
    """Log-probabilities as plain completions write them; None if the request does not ask for them."""
    if completion.body.logprobs is None:
        return None
    written, offsets = [token_text(completion.model, lp.token) for lp in logprobs], []
    for text in written:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": written,
        "token_logprobs": [finite(lp.logprob) for lp in logprobs],
        "top_logprobs": [{token_text(completion.model, t): finite(v) for t, v in lp.top} for lp in logprobs],
        "text_offset": offsets,
    }
