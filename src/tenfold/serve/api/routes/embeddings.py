"""`/v1/embeddings`: the mean of the last hidden states over each text; and reading the inputs of a request, text or tokens."""

import asyncio
import base64
from itertools import chain
from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from tenfold.serve.api.answer_types import Embeddings
from tenfold.serve.api.budget import Place
from tenfold.serve.api.dependencies import Placed, ServedModels, gives
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.models import Models
from tenfold.serve.api.protocol import EmbeddingRequest
from tenfold.serve.api.routes.answers import new_id
from tenfold.serve.api.served_model import ServedModel
from tenfold.serve.api.streaming import until_disconnect
from tenfold.serve.request import Request

router = APIRouter()
_MAX_PROMPTS = 256


@router.post("/v1/embeddings", **gives(Embeddings))
async def embeddings(body: EmbeddingRequest, request: HttpRequest, place: Placed, models: ServedModels) -> Response:
    return JSONResponse(await until_disconnect(request, answer(models, body, place)))


def prompts_of(value: Any, what: str) -> list[str | list[int]]:
    """The prompts of a field `what`, each text or tokens. Raises ApiError for an empty list, or more than _MAX_PROMPTS."""
    if isinstance(value, list) and not value:
        raise ApiError(400, f"{what} is an empty list: give at least one text.", param=what)
    prompts = value if isinstance(value, list) and not isinstance(value[0], int) else [value]
    if len(prompts) > _MAX_PROMPTS:
        raise ApiError(400, f"{what} has {len(prompts)} texts: at most {_MAX_PROMPTS} may come in one request.", param=what)
    return prompts


def encode(model: ServedModel, prompts: list[str | list[int]], what: str, suffix: str | None = None) -> list[list[int]]:
    """The tokens of each prompt; with a suffix, those of the prompt for the text between the two (fill in the middle).

    Raises ApiError for tokens outside the vocabulary.
    """
    encoded = [model.text.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    model.check_tokens(chain.from_iterable(encoded), what)
    return [model.text.between(tokens, suffix) for tokens in encoded] if suffix else encoded


async def answer(models: Models, body: EmbeddingRequest, place: Place) -> dict[str, Any]:
    """The whole answer as one object; embeddings have length 1."""
    model, vectors, read = await embed(models, body.model, prompts_of(body.input, "input"), place)
    data = [
        {"object": "embedding", "index": i, "embedding": _written(vector, body.encoding_format, body.dimensions)}
        for i, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": model.name, "usage": {"prompt_tokens": read, "total_tokens": read}}


async def embed(
    models: Models, name: str, inputs: list[str | list[int]], place: Place
) -> tuple[ServedModel, list[list[float]], int]:
    """The model `name`, its embedding of each input, and the number of tokens of all. Raises ApiError or TenfoldError."""
    model = await models.admit(name, place, len(inputs))
    encoded = await model.prompt(lambda: encode(model, inputs, "input"))
    for tokens in encoded:
        model.room(tokens, None, answers=False)
    requests = [Request(new_id("embd"), tokens, task="embed", owner=place.owner) for tokens in encoded]
    return model, await asyncio.gather(*(model.embed(r) for r in requests)), sum(map(len, encoded))


def unit_vector(vector: list[float]) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """The vector scaled to length 1."""
    values = np.array(vector, dtype=np.float32)
    return values / max(float(np.linalg.norm(values)), 1e-12)


def _written(vector: list[float], form: str | None, dimensions: int | None) -> list[float] | str:
    if dimensions is not None and dimensions > len(vector):
        raise ApiError(400, f"This model's embeddings have {len(vector)} dimensions, not {dimensions}.", param="dimensions")
    values = unit_vector(vector[:dimensions])
    return base64.b64encode(values.tobytes()).decode() if form == "base64" else [float(v) for v in values]
