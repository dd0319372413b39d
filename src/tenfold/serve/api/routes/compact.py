"""`/v1/responses/compact`: shortens a conversation to the user's messages and the model's summary of all messages."""

from typing import Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from tenfold.serve.api.answer_types import Compacted
from tenfold.serve.api.budget import Place
from tenfold.serve.api.dependencies import Placed, ServedModels, Stored, gives
from tenfold.serve.api.models import Models
from tenfold.serve.api.protocol import ResponsesRequest
from tenfold.serve.api.response_store import ResponseStore
from tenfold.serve.api.routes import responses
from tenfold.serve.api.routes.answers import new_id
from tenfold.serve.api.routes.items import as_list, compaction, stored
from tenfold.serve.api.streaming import until_disconnect

router = APIRouter()


class CompactRequest(ResponsesRequest):
    refused: ClassVar[tuple[str, ...]] = (*ResponsesRequest.refused, "background", "conversation", "stream")


_ASKED = (
    "Summarise this conversation for whoever goes on with it in your place: what is wanted, what was found out, decided and done, "
    "and what is still open. Write the summary alone."
)


@router.post("/v1/responses/compact", **gives(Compacted))
async def compact_response(body: CompactRequest, request: Request, place: Placed, models: ServedModels, store: Stored) -> Response:
    return JSONResponse(await until_disconnect(request, answer(models, body, store, place)))


async def answer(models: Models, body: CompactRequest, store: ResponseStore, place: Place) -> dict[str, Any]:
    """The compacted conversation, which a later response can take as its input. Raises ApiError or TenfoldError."""
    asked = body.model_copy(update={"input": [*as_list(body.input), {"role": "user", "content": _ASKED}], "store": False})
    conversation = await responses.prepare(models, asked, store, place)
    said = [{"role": "user", "content": turn["content"]} for turn in conversation.messages[:-1] if turn["role"] == "user"]
    whole = await responses.answer(asked, conversation, store)
    summary = "".join(part["text"] for item in whole["output"] for part in item.get("content", ()))
    return {
        "id": new_id("resp"),
        "object": "response.compaction",
        "created_at": whole["created_at"],
        "output": [*stored(said), compaction(summary)],
        "usage": whole["usage"],
    }
