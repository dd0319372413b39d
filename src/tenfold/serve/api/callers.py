"""Who sends a request, for routes. It needs no model, so that an application without one has the same callers."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.keys import Caller


async def _caller(request: HTTPConnection) -> Caller:
    return request.scope["tenfold_caller"]


CurrentCaller = Annotated[Caller, Depends(_caller)]


async def operator_only(caller: CurrentCaller) -> None:
    """Raises ApiError 403 for the key of a user. A server without keys can be reached from its own machine alone."""
    if not caller.is_operator:
        raise ApiError(403, "This needs the key of an operator: make one with `tenfold serve-key NAME --operator`.")
