"""Plain completions and embeddings in OpenAI's form."""

import asyncio
import base64
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from tenfold.serve.api.chat import Gathered
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.protocol import CompletionRequest, EmbeddingRequest
from tenfold.serve.api.service import Models, OutputDelta, ServedModel, new_id
from tenfold.serve.api.text import TextSide
from tenfold.serve.engine.grammar import grammar_from
from tenfold.serve.engine.request import Request, Sampling, TokenLogprob

_MAX_PROMPTS = 256


@dataclass
class Completion:
    """A request for each prompt."""

    body: CompletionRequest
    model: ServedModel
    prompts: list[str | list[int]]
    requests: list[Request]
    id: str
    created: int


def _prompts(value: Any, what: str) -> list[str | list[int]]:
    """One prompt or several, each text or tokens."""
    if isinstance(value, list) and not value:
        raise ApiError(400, f"{what} is an empty list: give at least one text.", param=what)
    prompts = value if isinstance(value, list) and not isinstance(value[0], int) else [value]
    if len(prompts) > _MAX_PROMPTS:
        raise ApiError(400, f"{what} has {len(prompts)} texts: at most {_MAX_PROMPTS} may come in one request.", param=what)
    return prompts


def _encode(model: ServedModel, prompts: list[str | list[int]], suffix: str | None = None) -> list[list[int]]:
    encoded = [model.text.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    return [model.text.between(tokens, suffix) for tokens in encoded] if suffix else encoded


async def prepare(models: Models, body: CompletionRequest) -> Completion:
    """Check a completion request. Raises ApiError or TenfoldError in one sentence."""
    body.check_stream_options()
    model = await models.get(body.model)
    prompts = _prompts(body.prompt, "prompt")
    encoded = await models.prompt(lambda: _encode(model, prompts, body.suffix))
    models.check_tokens(model, chain.from_iterable(encoded), "prompt")
    models.check_tokens(model, body.logit_bias or (), "logit_bias")
    grammar = None
    if body.guided_regex is not None:
        grammar = await asyncio.to_thread(grammar_from, None, body.guided_regex)
    elif body.guided_json is not None:
        grammar = await asyncio.to_thread(grammar_from, body.guided_json)
    name, requests = new_id("cmpl"), []
    for i, tokens in enumerate(encoded):
        sampling = body.sampling(
            max_tokens=models.admit(model, tokens, 16 if body.max_tokens is None else body.max_tokens),
            stop_tokens=model.text.stop_tokens,
            logprobs=body.logprobs,
            grammar=grammar,
        )
        requests.append(Request(f"{name}-{i}", tokens, sampling))
    return Completion(body, model, prompts, requests, name, int(time.time()))


async def _all(models: Models, completion: Completion) -> AsyncGenerator[tuple[int, OutputDelta], None]:
    """Pieces of all prompts as they come, with the number of the prompt."""
    queue: asyncio.Queue[tuple[int, OutputDelta] | Exception | None] = asyncio.Queue()

    async def one(number: int, request: Request) -> None:
        try:
            async for piece in models.generate(completion.model, request, completion.body.stops):
                queue.put_nowait((number, piece))
            queue.put_nowait(None)
        except Exception as error:  # it is raised where the pieces are read
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
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def answer(models: Models, completion: Completion) -> dict[str, Any]:
    """The whole answer as one object."""
    n = completion.requests[0].sampling.n
    gathered = [Gathered() for _ in range(n * len(completion.requests))]
    async for number, piece in _all(models, completion):
        gathered[number * n + piece.index].add(piece)
    choices = []
    for i, g in enumerate(gathered):
        before = _echo(completion, i // n)
        logprobs = None if completion.body.logprobs is None else _logprobs(completion.model.text, g.logprobs, len(before))
        choices.append({"index": i, "text": before + g.text, "logprobs": logprobs, "finish_reason": g.finish_reason})
    return {**_head(completion), "choices": choices, "usage": _usage(completion, sum(len(g.tokens) for g in gathered))}


async def chunks(models: Models, completion: Completion) -> AsyncGenerator[dict[str, Any], None]:
    """The answer piece by piece."""
    head, written, n = _head(completion), 0, completion.requests[0].sampling.n
    options = completion.body.stream_options
    begun: set[int] = set()
    async for number, piece in _all(models, completion):
        i = number * n + piece.index
        written += len(piece.tokens)
        text = piece.text if i in begun else _echo(completion, number) + piece.text
        begun.add(i)
        logprobs = None if completion.body.logprobs is None else _logprobs(completion.model.text, piece.logprobs, 0)
        yield {**head, "choices": [{"index": i, "text": text, "logprobs": logprobs, "finish_reason": piece.finish_reason}]}
    if options and options.include_usage:
        yield {**head, "choices": [], "usage": _usage(completion, written)}


def _echo(completion: Completion, number: int) -> str:
    if not completion.body.echo:
        return ""
    prompt = completion.prompts[number]
    return prompt if isinstance(prompt, str) else completion.model.text.tokenizer.decode(prompt)


def _head(completion: Completion) -> dict[str, Any]:
    return {
        "id": completion.id,
        "object": "text_completion",
        "created": completion.created,
        "model": completion.model.name,
        "system_fingerprint": None,
    }


def _usage(completion: Completion, written: int) -> dict[str, int]:
    read = sum(len(r.tokens) for r in completion.requests)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _logprobs(text: TextSide, logprobs: list[TokenLogprob], offset: int) -> dict[str, Any]:
    def written(token: int) -> str:
        return text.tokenizer.decode([token], skip_special_tokens=False)

    offsets = []
    for lp in logprobs:
        offsets.append(offset)
        offset += len(written(lp.token))
    return {
        "tokens": [written(lp.token) for lp in logprobs],
        "token_logprobs": [max(lp.logprob, -9999.0) for lp in logprobs],
        "top_logprobs": [{written(t): max(v, -9999.0) for t, v in lp.top} for lp in logprobs],
        "text_offset": offsets,
    }


async def embeddings(models: Models, body: EmbeddingRequest) -> dict[str, Any]:
    """The mean of the last hidden states over each text, of length 1."""
    model = await models.get(body.model)
    inputs = _prompts(body.input, "input")
    encoded = await models.prompt(lambda: _encode(model, inputs))
    models.check_tokens(model, chain.from_iterable(encoded), "input")
    for tokens in encoded:
        models.admit(model, tokens, None, answers=False)
    requests = [Request(new_id("embd"), tokens, Sampling(), embed=True) for tokens in encoded]
    vectors = await asyncio.gather(*(models.embed(model, r) for r in requests))
    data = [
        {"object": "embedding", "index": i, "embedding": _written(vector, body.encoding_format, body.dimensions)}
        for i, vector in enumerate(vectors)
    ]
    read = sum(map(len, encoded))
    return {"object": "list", "data": data, "model": model.name, "usage": {"prompt_tokens": read, "total_tokens": read}}


def _written(vector: list[float], form: str | None, dimensions: int | None) -> list[float] | str:
    values = np.array(vector[:dimensions], dtype=np.float32)
    values /= max(float(np.linalg.norm(values)), 1e-12)
    return base64.b64encode(values.tobytes()).decode() if form == "base64" else [float(v) for v in values]
