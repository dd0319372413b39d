"""What routes are given: the models, the feedback database, who asks; and how routes describe their answers.

A part of the API is a FastAPI router, or a function that takes the application, under an entry point of `tenfold.routes`.
Parts of other packages use the same names:

    router = APIRouter()

    @router.get("/v1/context")
    async def context(models: ServedModels) -> int:
        return (await models.get("")).backend.max_model_len
"""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import BaseModel

from tenfold.serve.api.budget import Place
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.models import Models
from tenfold.serve.feedback.feedback import Feedback


async def _models(request: Request) -> Models:
    return request.app.state.models


async def _optional_feedback(request: Request) -> Feedback | None:
    return request.app.state.feedback


async def _feedback(request: Request) -> Feedback:
    if (feedback := request.app.state.feedback) is None:
        raise ApiError(404, "This server keeps no feedback: start it with --feedback.")
    return feedback


async def _owner(request: Request) -> str:
    return request.scope.get("tenfold_owner", "anonymous")


async def operator_only(request: Request) -> None:
    """Raises ApiError 403 for the key of a user. A server without keys can be reached from its own machine alone."""
    if not request.scope["tenfold_operator"]:
        raise ApiError(403, "This needs the key of an operator: make one with `tenfold serve-key NAME --operator`.")


ServedModels = Annotated[Models, Depends(_models)]
OptionalFeedback = Annotated[Feedback | None, Depends(_optional_feedback)]
KeptFeedback = Annotated[Feedback, Depends(_feedback)]
Owner = Annotated[str, Depends(_owner)]  # of the key that the request came with


async def _place(owner: Owner) -> AsyncIterator[Place]:
    place = Place(owner)
    with place.holds:
        yield place


Placed = Annotated[Place, Depends(_place)]


def gives(model: type[BaseModel]) -> dict[str, Any]:
    """Options of a route whose answer has the fields of `model`, for the API's document."""
    return {"response_model": None, "responses": {200: {"model": model}}}


def streams(model: type[BaseModel]) -> dict[str, Any]:
    """The same where `stream: true` gives server-sent events instead."""
    text = {"type": "string"}
    event = {"type": "object", "properties": {"event": text, "data": text}, "required": ["data"]}
    return {"response_model": None, "responses": {200: {"model": model, "content": {"text/event-stream": {"itemSchema": event}}}}}
