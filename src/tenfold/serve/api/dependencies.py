"""FastAPI dependencies of routes (the models, the feedback database, the caller), and how routes declare their answers.

A part of the API is a FastAPI router, or a function that takes the application, registered as an entry point of `tenfold.routes`.
Plugins use the same dependencies. A route accepts every key, unless it has `dependencies=[Depends(operator_only)]`:

    router = APIRouter()

    @router.get("/v1/context")
    async def context(models: ServedModels) -> int:
        return (await models.get("")).backend.max_model_len
"""

from collections.abc import AsyncIterator
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request
from pydantic import BaseModel

from tenfold.serve.api.background import Background
from tenfold.serve.api.budget import Place
from tenfold.serve.api.callers import CurrentCaller as CurrentCaller
from tenfold.serve.api.callers import operator_only as operator_only
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.models import Models
from tenfold.serve.api.response_store import ResponseStore
from tenfold.serve.feedback.feedback import Feedback


async def _models(request: Request) -> Models:
    return request.app.state.models


async def _optional_feedback(request: Request) -> Feedback | None:
    return request.app.state.feedback


async def _feedback(request: Request) -> Feedback:
    if (feedback := request.app.state.feedback) is None:
        raise ApiError(404, "This server keeps no feedback: start it with --feedback.")
    return feedback


async def _owner(caller: CurrentCaller) -> str:
    return caller.name


ServedModels = Annotated[Models, Depends(_models)]
OptionalFeedback = Annotated[Feedback | None, Depends(_optional_feedback)]
KeptFeedback = Annotated[Feedback, Depends(_feedback)]
Owner = Annotated[str, Depends(_owner)]  # the caller's name, which owns what the request stores


async def _stored(request: Request) -> ResponseStore:
    return request.app.state.stored


Stored = Annotated[ResponseStore, Depends(_stored)]


async def _works(request: Request) -> Background:
    return request.app.state.background


Works = Annotated[Background, Depends(_works)]


class Stores(NamedTuple):
    """Where an answer is stored if its request has `store: true`."""

    feedback: Feedback | None
    answers: ResponseStore


async def _stores(feedback: OptionalFeedback, answers: Stored) -> Stores:
    return Stores(feedback, answers)


AnswerStores = Annotated[Stores, Depends(_stores)]


async def _place(caller: CurrentCaller) -> AsyncIterator[Place]:
    place = Place(caller)
    with place.holds:
        yield place


Placed = Annotated[Place, Depends(_place)]


def gives(model: type[BaseModel]) -> dict[str, Any]:
    """Options of a route whose answer has the fields of `model`, for the OpenAPI document."""
    return {"response_model": None, "responses": {200: {"model": model}}}


def streams(model: type[BaseModel]) -> dict[str, Any]:
    """The same for a route that answers `stream: true` with server-sent events."""
    text = {"type": "string"}
    event = {"type": "object", "properties": {"event": text, "data": text}, "required": ["data"]}
    return {"response_model": None, "responses": {200: {"model": model, "content": {"text/event-stream": {"itemSchema": event}}}}}
