"""`/v1/feedback`: users' judgements of stored answers, and the deletion of users' data."""

import asyncio

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from tenfold.serve.api.answer_types import DeletedRows, Kept
from tenfold.serve.api.dependencies import CurrentCaller, KeptFeedback, gives, operator_only
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.keys import Caller
from tenfold.serve.api.protocol import FeedbackRequest
from tenfold.serve.feedback.feedback import Feedback

router = APIRouter()


async def _below_limit(request: Request, caller: CurrentCaller) -> None:
    """Raises ApiError 429 for a key that has given its feedback of a day."""
    if not caller.may_name_users and (wait := request.app.state.feedback_rate.wait(caller.name)) > 0:
        raise ApiError(429, f"Too much feedback with this key: the next may come in {wait / 3600:.1f} h.", retry_after=wait)


@router.post("/v1/feedback", dependencies=[Depends(_below_limit)], **gives(Kept))
async def judge(body: FeedbackRequest, caller: CurrentCaller, feedback: KeptFeedback) -> Response:
    if not body.consent:
        raise ApiError(400, "Feedback is kept only with consent: send consent: true.", param="consent")
    await _check_answers(body, caller, feedback)
    user = caller.user(body.user)
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


async def _check_answers(body: FeedbackRequest, caller: Caller, feedback: Feedback) -> None:
    """Raises ApiError 404 for answers that are not stored, or belong to other users."""
    of = None if caller.may_name_users else caller.name
    for answer in filter(None, (body.response_id, body.other_response_id)):
        if not await asyncio.to_thread(feedback.has, answer, of):
            raise ApiError(404, f"There is no stored answer {answer!r}: ask for it with `store: true` first.")


@router.delete("/v1/feedback", **gives(DeletedRows))
async def forget(caller: CurrentCaller, feedback: KeptFeedback, user: str | None = None) -> Response:
    """Delete the caller's data; on a server without keys, that of `user`."""
    return JSONResponse({"deleted_rows": await asyncio.to_thread(feedback.delete_user, caller.user(user))})


@router.delete("/v1/feedback/users/{user}", dependencies=[Depends(operator_only)], **gives(DeletedRows))
async def forget_user(user: str, feedback: KeptFeedback) -> Response:
    return JSONResponse({"deleted_rows": await asyncio.to_thread(feedback.delete_user, user)})
