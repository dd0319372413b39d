"""Error answers in OpenAI's format: a status, and one sentence in a JSON object."""

import sys
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from openai.types import ErrorObject
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenfold.serve.backends.backend import BackendStopped
from tenfold.spec.errors import TenfoldError

_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    429: "rate_limit_error",
}  # fmt: skip


class ErrorAnswer(BaseModel):
    """The body of every error answer."""

    error: ErrorObject


class ModelNotLoaded(TenfoldError):
    """A requested model cannot be loaded. The message may name files of the server, so only operators get it."""


class ApiError(HTTPException):
    """An error that is answered with this status and message, one sentence.

    `code` and `param` are OpenAI's fields; `retry_after` is in seconds, 0 for no `Retry-After` header.
    """

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None, retry_after: float = 0):
        named = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        super().__init__(status, message, named | ({"Retry-After": str(max(1, round(retry_after)))} if retry_after else {}))
        self.status, self.code, self.param = status, code, param

    def __str__(self) -> str:
        return self.detail

    def body(self) -> dict[str, Any]:
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def answer_errors(app: FastAPI) -> None:
    """Install handlers that answer every error of the application in OpenAI's format."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(TenfoldError)
    async def tenfold_error(_: Request, error: TenfoldError) -> JSONResponse:
        return ApiError(400, str(error)).response()

    @app.exception_handler(ModelNotLoaded)
    async def not_loaded(request: Request, error: ModelNotLoaded) -> JSONResponse:
        print(error, file=sys.stderr, flush=True)
        vague = "The model cannot be loaded: an operator finds the reason in the server's log."
        return ApiError(503, str(error) if request.scope["tenfold_caller"].is_operator else vague).response()

    @app.exception_handler(BackendStopped)
    async def backend_stopped(_: Request, __: BackendStopped) -> JSONResponse:
        return ApiError(503, "The model's engine ended: try again in a moment.", retry_after=5).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return ApiError(400, f"The request is not valid JSON: {first['ctx']['error']}.").response()
        where, said = wrong(error, error.body)
        return ApiError(400, f"{where or 'The request'}: {said}.", param=where or None).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        said = "The request's body cannot be read: send JSON in UTF-8" if error.status_code == 400 else str(error.detail)
        response = ApiError(error.status_code, f"{said.rstrip('.')}.").response()
        response.headers.update(error.headers or {})
        if error.status_code == 405:
            response.headers["Allow"] = _allowed(app, request)
        return response


class AnswerFailures:
    """ASGI middleware, the innermost: answers unexpected exceptions with status 500, and raises them again for the log."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception:
            if scope["type"] == "http" and not begun:
                message = "The server failed on this request: an operator finds the reason in its log."
                await ApiError(500, message).response()(scope, receive, send)
            raise


def wrong(error: RequestValidationError | ValidationError, body: Any) -> tuple[str, str]:
    """The field of `body` that is wrong (a dotted path, '' for the body itself), and what is wrong with it.

    A field that may have several forms (a union) has an error for each form; those of the form that fits best are taken.
    """
    found: dict[str, list[str]] = {}
    for one in error.errors():
        found.setdefault(_field(one, body), []).append(one["msg"])
    where = max(found, key=lambda name: name.count("."))  # the form that fits best has the deepest error
    said = list(dict.fromkeys(found[where]))
    return where, " or ".join([said[0], *(other.removeprefix("Input should be ") for other in said[1:])])


def _field(one: Any, body: Any) -> str:
    """The path of an error's field in the body, without the names of a union's members, which pydantic puts into it."""
    names = [part for part in one["loc"] if part != "body"]
    path, value = [], body
    for name in names:
        if name in (value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()):
            value = value[name]
        elif isinstance(body, dict) and (one["type"] != "missing" or name is not names[-1]):
            continue  # the name of a union's member
        path.append(str(name))
    return ".".join(path)


def _allowed(app: FastAPI, request: Request) -> str:
    """The methods that the path of a request allows. Starlette's own list has only those of the first matching route."""
    routes = (context.original_route for context in iter_route_contexts(app.routes))
    found = [r for r in routes if isinstance(r, Route) and r.matches(request.scope)[0] != Match.NONE]
    exact = min(found, key=lambda route: len(route.param_convertors)).path
    return ", ".join(sorted({m for route in found if route.path == exact for m in route.methods or ()}))
