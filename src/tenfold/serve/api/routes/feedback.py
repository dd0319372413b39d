"""`/v1/feedback`: what people say of stored answers, and its deletion."""

import asyncio

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from tenfold.serve.api.dependencies import KeptFeedback, Owner, gives
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.protocol import DeletedRows, FeedbackRequest, Kept

router = APIRouter()


@router.post("/v1/feedback", **gives(Kept))
async def judge(body: FeedbackRequest, owner: Owner, feedback: KeptFeedback) -> Response:
    if not body.consent:
        raise ApiError(400, "Feedback is kept only with consent: send consent: true.", param="consent")
    user = body.user or owner
    if body.winner is not None:
        if body.other_response_id is None:
            raise ApiError(400, "A comparison needs response_id and other_response_id.", param="other_response_id")
        pair = (body.response_id, body.other_response_id, user, body.winner, body.blind, body.position_swapped)
        await asyncio.to_thread(feedback.compare, *pair)
    if body.rating is not None:
        await asyncio.to_thread(feedback.rate, body.response_id, user, body.rating, body.reasons, body.comment)
    if body.correction is not None:
        await asyncio.to_thread(feedback.correct, body.response_id, user, body.correction)
    if body.winner is None and body.rating is None and body.correction is None:
        raise ApiError(400, "There is nothing to keep: give a rating, a correction or a winner.")
    return JSONResponse({"kept": True})


@router.delete("/v1/feedback/users/{user}", **gives(DeletedRows))
async def forget(user: str, feedback: KeptFeedback) -> Response:
    return JSONResponse({"deleted_rows": await asyncio.to_thread(feedback.delete_user, user)})
