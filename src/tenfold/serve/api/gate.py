"""The gate before the application: who may come in, under which name, from which page, and with how large a body."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.keys import ANYBODY, STRANGER, Caller, Keys, Rate
from tenfold.serve.api.sites import Sites
from tenfold.serve.options import ServerOptions

# On every answer that does not say otherwise: it is no page, stands in no frame, and is of the type that it says.
_HEADERS = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
)


class Gate:
    """ASGI middleware that refuses requests of other hosts and sites, without a valid key, above its limit, or too large."""

    def __init__(self, app: ASGIApp, options: ServerOptions, keys: Keys | None):
        self.app, self.keys, self.max_body_bytes = app, keys, options.limits.max_body_bytes
        self.sites = Sites(options.host, options.allowed_hosts, options.allowed_origins)
        self.requests = Rate(options.requests_per_minute, 60)
        self.open = ("/", "/health", *(["/metrics"] if options.metrics == "everyone" else []))  # answered without a key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers, most, send = dict(scope["headers"]), self.max_body_bytes, _with_headers(send)
        try:
            self.sites.check(scope.get("method", "websocket"), headers)
            scope["tenfold_caller"] = self._caller(scope["path"], headers)
        except ApiError as refusal:
            return await refusal.response()(scope, receive, send)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            while (await receive()).get("more_body"):  # a client reads no answer while it still sends
                pass
            error = ApiError(413, f"The request has {int(length)} bytes: at most {most} are taken.")
            return await error.response()(scope, receive, send)
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise ApiError(413, f"The request is larger than the {most} bytes that are taken.")
            return message

        return await self.app(scope, limited, send)

    def _caller(self, path: str, headers: dict[bytes, bytes]) -> Caller:
        """Who sends the request. Raises ApiError 401 or 429."""
        if self.keys is None:
            return ANYBODY
        if path in self.open:
            return STRANGER
        scheme, _, key = headers.get(b"authorization", b"").decode(errors="replace").partition(" ")
        caller = self.keys.caller(key.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            raise ApiError(401, "A valid key is needed: send it as `Authorization: Bearer KEY`.")
        if (wait := self.requests.wait(caller.name)) > 0:
            raise ApiError(429, f"Too many requests with this key: the next may come in {wait:.0f} s.", retry_after=wait)
        return caller


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"].endswith("http.response.start"):
            given = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(header for header in _HEADERS if header[0] not in given)]
        await send(message)

    return sending
