"""`/health`, `/metrics`, and the chat page at `/`."""

from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from tenfold.serve.api.dependencies import OptionalFeedback, ServedModels
from tenfold.serve.api.protocol import Health

router = APIRouter()


@router.get("/health", response_model=None, responses={200: {"model": Health}, 503: {"model": Health}})
async def health(models: ServedModels, feedback: OptionalFeedback) -> Response:
    lost = [m.name for m in models.loaded.values() if not m.backend.is_alive]
    if models.draining or lost:
        why = "shutting down" if models.draining else f"engine of {lost[0]} ended"
        return JSONResponse({"status": why}, 503)
    return JSONResponse({"status": "ok", "feedback": feedback is not None})


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(models: ServedModels) -> Response:
    for model in models.loaded.values():
        models.metrics.update(model.name, model.backend.stats)
    return Response(models.metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page() -> str:
    return resources.files("tenfold.serve.api").joinpath("chat.html").read_text()
