"""Access checks: host names of the console only, changes from its own pages only, and a valid key where one is sent."""

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tenfold.serve.api.gate import Gate, key_of
from tenfold.serve.api.keys import STRANGER, Caller


class ConsoleGate(Gate):
    """The gate of `tenfold serve`, except that a request without a key is admitted as a stranger, who sees nothing personal."""

    def _caller(self, path: str, headers: dict[bytes, bytes]) -> Caller:
        if self.keys is not None and not key_of(headers):
            return STRANGER
        return super()._caller(path, headers)


class Below:
    """ASGI middleware that removes a proxy's path prefix from requests, where the proxy does not remove it itself."""

    def __init__(self, app: ASGIApp, path: str):
        self.app, self.path = app, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.path and scope["type"] == "http":
            if scope["path"] == self.path:  # the page's addresses are relative and need the final slash
                await RedirectResponse(f"{self.path}/")(scope, receive, send)
                return
            if scope["path"].startswith(f"{self.path}/"):
                scope = {**scope, "path": scope["path"].removeprefix(self.path)}
        await self.app(scope, receive, send)
