"""`/health` and `/metrics`."""

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from tenfold.serve.api.answer_types import Health
from tenfold.serve.api.dependencies import CurrentCaller, OptionalFeedback, ServedModels, operator_only

router = APIRouter()


async def _reader(request: Request, caller: CurrentCaller) -> None:
    if request.app.state.options.metrics == "operators":
        await operator_only(caller)


@router.get("/health", response_model=None, responses={200: {"model": Health}, 503: {"model": Health}})
async def health(models: ServedModels, feedback: OptionalFeedback) -> Response:
    lost = [m.name for m in models.loaded.values() if not m.backend.is_alive]
    if models.draining or lost:
        why = "shutting down" if models.draining else f"engine of {lost[0]} ended"
        return JSONResponse({"status": why}, 503)
    return JSONResponse({"status": "ok", "feedback": feedback is not None})


@router.get("/metrics", dependencies=[Depends(_reader)], response_class=PlainTextResponse)
async def metrics(models: ServedModels) -> Response:
    for model in models.serving:
        models.metrics.update(model.name, model.backend.stats)
    return Response(models.metrics.text(), media_type="text/plain; version=0.0.4")
