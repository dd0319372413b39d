"""Errors as the OpenAI client expects them: a status, and one sentence in a JSON object."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from tenfold.serve.backends.backend import BackendStopped
from tenfold.spec.errors import TenfoldError

_KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ErrorDetail(BaseModel):
    """What the client's exceptions carry."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer with this status and sentence."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None, retry_after: float = 0):
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(max(1, round(self.retry_after)))} if self.retry_after else {}

    def body(self) -> dict[str, Any]:
        return error_body(self.status, str(self), self.code, self.param)


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def answer_errors(app: FastAPI) -> None:
    """Answer every error of the application in that shape."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(TenfoldError)
    async def tenfold_error(_: Request, error: TenfoldError) -> JSONResponse:
        return JSONResponse(error_body(400, str(error)), 400)

    @app.exception_handler(BackendStopped)
    async def backend_stopped(_: Request, __: BackendStopped) -> JSONResponse:
        return JSONResponse(error_body(503, "The model's engine ended: try again in a moment."), 503, {"Retry-After": "5"})

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        if first["type"] == "json_invalid":
            return JSONResponse(error_body(400, f"The request is not valid JSON: {first['ctx']['error']}."), 400)
        return JSONResponse(error_body(400, f"{where or 'The request'}: {first['msg']}.", param=where or None), 400)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        if error.status_code == 405:  # the first route that matches knows neither the others of its path nor a more exact path
            found = [r for r in app.routes if isinstance(r, Route) and r.matches(request.scope)[0] != Match.NONE]
            exact = min(found, key=lambda route: len(route.param_convertors)).path
            headers["Allow"] = ", ".join(sorted({m for route in found if route.path == exact for m in route.methods or ()}))
        said = (
            "The request's body cannot be read: send JSON in UTF-8" if error.status_code == 400 else str(error.detail).rstrip(".")
        )
        return JSONResponse(error_body(error.status_code, f"{said}."), error.status_code, headers)
