"""The HTTP application. Its parts come from the entry points `tenfold.routes`, both the built-in ones and those of plugins."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.middleware.cors import CORSMiddleware

from tenfold.serve.api.access_log import AccessLog
from tenfold.serve.api.background import Background
from tenfold.serve.api.errors import AnswerFailures, ApiError, ErrorAnswer, answer_errors
from tenfold.serve.api.gate import Gate
from tenfold.serve.api.keys import Rate
from tenfold.serve.api.models import Models
from tenfold.serve.api.response_store import ResponseStore
from tenfold.serve.api.tracing import trace_provider, traced
from tenfold.serve.feedback.feedback import Feedback
from tenfold.serve.options import ServerOptions
from tenfold.spec.errors import TenfoldError
from tenfold.spec.plugins import load, plugins

_ERRORS = (400, 401, 403, 404, 413, 429, 503, 504)


def make_app(models: Models, options: ServerOptions) -> FastAPI:
    """The application that serves `models`; at its start, before any request is answered, it loads the first model.

    If that fails, `app.state.failed` is the error. Raises TenfoldError if the feedback database cannot be opened, or
    OpenTelemetry is needed and not installed.
    """
    spans = trace_provider(options.otlp_traces_endpoint) if options.otlp_traces_endpoint else None

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await models.get("")
        except TenfoldError as error:
            app.state.failed = error
            raise
        except ApiError as error:  # SIGTERM came before the model was loaded
            app.state.failed = TenfoldError(str(error))
            raise
        yield
        await models.drain(options.drain_seconds)
        if spans is not None:
            await asyncio.to_thread(spans.shutdown)  # sends the last spans

    errors: dict[int | str, dict[str, Any]] = {code: {"model": ErrorAnswer} for code in _ERRORS}
    app = FastAPI(title="Tenfold", version="1", lifespan=lifespan, docs_url=None, redoc_url=None, responses=errors)
    app.state.models, app.state.options, app.state.failed = models, options, None
    app.state.stored = ResponseStore(models.limits.max_stored_bytes, models.limits.key_share)
    app.state.background = Background()
    app.state.feedback = Feedback(options.feedback) if options.feedback else None
    app.state.feedback_rate = Rate(options.feedback_per_day, 86400)
    answer_errors(app)
    app.add_middleware(AnswerFailures)  # each further one is wrapped around those before
    app.add_middleware(Gate, options=options, limits=models.limits)
    if options.allowed_origins:
        app.add_middleware(CORSMiddleware, allow_origins=options.allowed_origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(AccessLog, form=options.access_log)
    if spans is not None:
        app.add_middleware(traced, provider=spans)
    for name in plugins("routes"):
        if name.startswith("console."):  # a tab of the console
            continue
        part = load("routes", name)
        if isinstance(part, APIRouter):
            app.include_router(part)
        else:
            part(app)
    app.openapi = _document(app)  # type: ignore[method-assign]
    return app


def _document(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """FastAPI's OpenAPI document without the status 422, since this application answers 400 instead."""
    written = app.openapi

    def document() -> dict[str, Any]:
        made = written()
        for operations in made["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        return made

    return document
