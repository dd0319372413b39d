"""`/v1/recommend`: the best next items after a history, by one step of the serving engine.

Items are tokens, so a request is a prompt like any other: it is scheduled, batched, cached, limited and drained as those are.
"""

from typing import Annotated, Any

from fastapi import APIRouter, FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from tenfold.rank.family import MODEL_TYPE
from tenfold.serve.api.budget import Place
from tenfold.serve.api.dependencies import Placed, ServedModels, gives
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.models import Models
from tenfold.serve.api.protocol import Body, RequestBody
from tenfold.serve.api.routes.answers import new_id
from tenfold.serve.api.streaming import until_disconnect
from tenfold.serve.request import Request, Sampling

LONGEST, EXCLUDED, MOST = 512, 400, 100  # items of a history, left out, of an answer: MAX_LOGPROBS at most together
Item = Annotated[str, Field(max_length=1000)]
router = APIRouter()


class RecommendRequest(RequestBody):
    """A history, the oldest item first, by the items' names; it may be empty. Items of it and of `exclude` are not recommended."""

    model: str = ""
    history: Annotated[list[Item], Field(max_length=LONGEST)]
    exclude: Annotated[list[Item], Field(max_length=EXCLUDED, default_factory=list)]
    k: Annotated[int, Field(ge=1, le=MOST)] = 10


class Recommendations(Body):
    """The best items first, and their log-probabilities; `unknown` are items of the request that the model does not know."""

    model: str
    items: list[str]
    logprobs: list[float]
    unknown: list[str]


def add_routes(app: FastAPI) -> None:
    """Add the route where a ranking model is served."""
    if rankers(app.state.models):
        app.include_router(router)


def rankers(models: Models) -> list[str]:
    """The names of the served models that rank items."""
    configs = {name: options.path / "config.json" for name, options in models.options.items()}
    return [name for name, file in configs.items() if file.is_file() and f'"{MODEL_TYPE}"' in file.read_text()]


@router.post("/v1/recommend", **gives(Recommendations))
async def recommend(body: RecommendRequest, request: HttpRequest, place: Placed, models: ServedModels) -> Response:
    return JSONResponse(await until_disconnect(request, _recommended(models, body, place)))


async def _recommended(models: Models, body: RecommendRequest, place: Place) -> dict[str, Any]:
    found = rankers(models)
    name = models.resolve(body.model) if body.model or not found else found[0]
    if name not in found:
        raise ApiError(400, f"The model {name!r} recommends nothing: it ranks no items.", param="model")
    model = await models.get(name)
    number = {item: model.text.tokenizer.token_to_id(item) for item in (*body.history, *body.exclude)}
    history = [0, *(n for item in body.history if (n := number[item]))][-model.backend.max_model_len + 1 :]
    out = {0, *filter(None, number.values())}
    sampling = Sampling(temperature=0.0, max_tokens=1, logprobs=body.k + len(out))
    model.admit(place, 1)
    model.room(history, 1)
    top: list[tuple[int, float]] = []
    async for delta in model.generate(Request(new_id("rec"), history, sampling, owner=place.owner), []):
        top = delta.logprobs[0].top if delta.logprobs else top
    best = {model.text.tokenizer.id_to_token(token): logprob for token, logprob in top if token not in out}
    items, unknown = list(best)[: body.k], [item for item, n in number.items() if not n]
    return {"model": name, "items": items, "logprobs": [best[item] for item in items], "unknown": unknown}
