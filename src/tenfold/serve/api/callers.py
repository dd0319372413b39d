"""The caller of a request, as a dependency of routes; applications without models (the console) use it, too."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.keys import Caller


async def _caller(request: HTTPConnection) -> Caller:
    return request.scope["tenfold_caller"]


CurrentCaller = Annotated[Caller, Depends(_caller)]


async def operator_only(caller: CurrentCaller) -> None:
    """Raises ApiError 403 unless the caller is an operator, as everybody is on a server without keys."""
    if not caller.is_operator:
        raise ApiError(403, "This needs the key of an operator: make one with `tenfold serve-key NAME --operator`.")
