"""The gate before the application: checks the host, the page, the key and the size of each request."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenfold.serve.api.budget import Budget
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.keys import ANYBODY, STRANGER, Caller, KeyFile, Rate
from tenfold.serve.api.sites import Sites
from tenfold.serve.options import Limits, ServerOptions

# Headers of answers that do not set them: load nothing as a page, allow no framing, do not guess the content type.
_HEADERS = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
)

PAGE = "/page/"  # files of the chat page, which need no key


class Gate:
    """ASGI middleware that refuses requests for other hosts, of other sites' pages, without a valid key, too many or too large.

    The application finds the caller in its scope, as `tenfold_caller`.
    """

    def __init__(self, app: ASGIApp, options: ServerOptions, limits: Limits):
        self.app, self.keys = app, KeyFile(options.keys) if options.keys else None
        self.bodies = Budget(limits.max_in_flight_bytes, limits.key_share)
        self.max_body_bytes = min(limits.max_body_bytes, self.bodies.each)
        self.sites = Sites(options.host, options.allowed_hosts, options.allowed_origins)
        self.requests = Rate(options.requests_per_minute, 60)
        self.open = ("/", "/health", *(["/metrics"] if options.metrics == "everyone" else []))  # answered without a key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers, send = dict(scope["headers"]), _with_headers(send)
        try:
            self.sites.check(scope.get("method", "websocket"), headers)
            caller = scope["tenfold_caller"] = self._caller(scope["path"], headers)
        except ApiError as refusal:
            return await refusal.response()(scope, receive, send)
        length = headers.get(b"content-length", b"0")
        body = _Body(self.bodies, caller.name, self.max_body_bytes)
        try:
            body.grow(int(length) if length.isdigit() else 0)
        except ApiError as refusal:
            while (await receive()).get("more_body"):  # many clients read the answer only after they have sent the body
                pass
            return await refusal.response()(scope, receive, send)
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            body.grow(read)  # more than `content-length` says, or without that header
            return message

        try:
            return await self.app(scope, limited, send)
        finally:
            body.release()

    def _caller(self, path: str, headers: dict[bytes, bytes]) -> Caller:
        """Who sends the request. Raises ApiError 401 without a valid key, and 429 above the rate limit."""
        if self.keys is None:
            return ANYBODY
        if path in self.open or path.startswith(PAGE):
            return STRANGER
        key = key_of(headers)
        caller = self.keys.caller(key) if key else None
        if caller is None:
            raise ApiError(401, "A valid key is needed: send it as `Authorization: Bearer KEY`, `api-key` or `x-api-key`.")
        if (wait := self.requests.wait(caller.name)) > 0:
            raise ApiError(429, f"Too many requests with this key: the next may come in {max(1, wait):.0f} s.", retry_after=wait)
        return caller


def key_of(headers: dict[bytes, bytes]) -> str:
    """The key of a request, as clients of OpenAI, Azure and Anthropic send it; '' if there is none."""
    scheme, _, key = headers.get(b"authorization", b"").decode(errors="replace").partition(" ")
    other = headers.get(b"api-key") or headers.get(b"x-api-key") or b""
    return key.strip() if scheme.lower() == "bearer" else other.decode(errors="replace")


class _Body:
    """The part of the budget for bodies that a request holds until it is answered, since its parsed content lives as long."""

    def __init__(self, budget: Budget, owner: str, most: int):
        self.budget, self.owner, self.most, self.size = budget, owner, most, 0

    def grow(self, size: int) -> None:
        """Hold `size` bytes in all. Raises ApiError 413 if the body is too large, and 429 if all bodies together are."""
        more = size - self.size
        if more <= 0:
            return
        if size > self.most:
            raise ApiError(413, f"The body of the request is larger than the {self.most} bytes that are allowed.")
        if not self.budget.has_room(self.owner, more):
            most, each = self.budget.most, self.budget.each
            message = f"The unanswered requests are too large together (at most {most} bytes, {each} of one key): try again later."
            raise ApiError(429, message, retry_after=2)
        self.budget.take(self.owner, more)
        self.size = size

    def release(self) -> None:
        self.budget.give_back(self.owner, self.size)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"].endswith("http.response.start"):
            given = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(header for header in _HEADERS if header[0] not in given)]
        await send(message)

    return sending
