"""`/v1/score` and `/v1/rerank`, as in vLLM: the similarity of two texts, as the cosine of their embeddings."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from tenfold.serve.api.answer_types import Reranked, Scores
from tenfold.serve.api.budget import Place
from tenfold.serve.api.dependencies import Placed, ServedModels, gives
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.models import Models
from tenfold.serve.api.protocol import RequestBody, Text
from tenfold.serve.api.routes.answers import new_id
from tenfold.serve.api.routes.embeddings import embed, prompts_of, unit_vector
from tenfold.serve.api.streaming import until_disconnect

router = APIRouter()


class ScoreRequest(RequestBody):
    model: str = ""
    text_1: Text | Annotated[list[Text], Field(min_length=1)]
    text_2: Text | Annotated[list[Text], Field(min_length=1)]


class RerankRequest(RequestBody):
    model: str = ""
    query: Text
    documents: Annotated[list[Text], Field(min_length=1)]
    top_n: Annotated[int, Field(ge=0)] | None = None  # None and 0 mean all


@router.post("/v1/score", **gives(Scores))
async def score(body: ScoreRequest, request: Request, place: Placed, models: ServedModels) -> Response:
    return JSONResponse(await until_disconnect(request, answer(models, body, place)))


async def answer(models: Models, body: ScoreRequest, place: Place) -> dict[str, Any]:
    """The score of each text of `text_2` with the one text of `text_1`, or with the text of `text_1` at the same index."""
    first, second = body.text_1 if isinstance(body.text_1, list) else [body.text_1], body.text_2
    second = second if isinstance(second, list) else [second]
    if len(first) not in (1, len(second)):
        message = f"text_1 has {len(first)} texts and text_2 {len(second)}: give one text, or as many as in text_2."
        raise ApiError(400, message, param="text_1")
    model, vectors, read = await embed(models, body.model, prompts_of([*first, *second], "text_2"), place)
    units = [unit_vector(vector) for vector in vectors]
    left, right = units[: len(first)] * (len(second) // len(first)), units[len(first) :]
    data = [{"index": i, "object": "score", "score": float(a @ b)} for i, (a, b) in enumerate(zip(left, right, strict=True))]
    begun = {"id": new_id("score"), "object": "list", "created": int(time.time()), "model": model.name}
    return {**begun, "data": data, "usage": {"prompt_tokens": read, "total_tokens": read}}


@router.post("/v1/rerank", **gives(Reranked))
async def rerank(body: RerankRequest, request: Request, place: Placed, models: ServedModels) -> Response:
    return JSONResponse(await until_disconnect(request, ranking(models, body, place)))


async def ranking(models: Models, body: RerankRequest, place: Place) -> dict[str, Any]:
    """The documents by their score with the query, the highest first."""
    asked = ScoreRequest(model=body.model, text_1=body.query, text_2=body.documents)
    scored = await answer(models, asked, place)
    results = [
        {"index": one["index"], "document": {"text": body.documents[one["index"]]}, "relevance_score": one["score"]}
        for one in sorted(scored["data"], key=lambda one: -one["score"])
    ]
    return {"id": new_id("rerank"), "model": scored["model"], "results": results[: body.top_n or None], "usage": scored["usage"]}
