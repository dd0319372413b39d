"""Who may come in: requests to the console's own names, from its own pages, and with a key where one is sent."""

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tenfold.serve.api.gate import Gate, key_of
from tenfold.serve.api.keys import STRANGER, Caller


class ConsoleGate(Gate):
    """The server's gate, but that a request without a key comes in as a stranger's, who sees what is not personal."""

    def _caller(self, path: str, headers: dict[bytes, bytes]) -> Caller:
        if self.keys is not None and not key_of(headers):
            return STRANGER
        return super()._caller(path, headers)


class Below:
    """ASGI middleware that takes the path of a proxy from the beginning of a request's own, where the proxy passes it on."""

    def __init__(self, app: ASGIApp, path: str):
        self.app, self.path = app, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.path and scope["type"] == "http":
            if scope["path"] == self.path:  # the page's addresses are relative to a folder
                await RedirectResponse(f"{self.path}/")(scope, receive, send)
                return
            if scope["path"].startswith(f"{self.path}/"):
                scope = {**scope, "path": scope["path"].removeprefix(self.path)}
        await self.app(scope, receive, send)
