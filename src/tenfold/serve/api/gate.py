"""The gate before the application: requests need a key where the server has keys, and may not be too large."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.keys import Keys

_OPEN = ("/", "/health", "/metrics")  # answered without a key


class Gate:
    """ASGI middleware that refuses requests without a valid key, above its limit, or with too large a body."""

    def __init__(self, app: ASGIApp, keys: Keys | None, max_body_bytes: int):
        self.app, self.keys, self.max_body_bytes = app, keys, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, most = dict(scope["headers"]), self.max_body_bytes
        try:
            self._check_key(scope, headers)
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

    def _check_key(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Note the key's owner, and whether it is an operator, in the scope. Raises ApiError 401 or 429."""
        scope["tenfold_operator"] = self.keys is None
        if self.keys is None or scope["path"] in _OPEN or scope["method"] == "OPTIONS":
            return
        key = headers.get(b"authorization", b"").decode(errors="replace").removeprefix("Bearer ").strip()
        owner = self.keys.owner(key)
        if owner is None:
            raise ApiError(401, "A valid key is needed: send it as `Authorization: Bearer KEY`.")
        if (wait := self.keys.wait(owner)) > 0:
            raise ApiError(429, f"Too many requests with this key: the next may come in {wait:.0f} s.", retry_after=wait)
        scope["tenfold_owner"], scope["tenfold_operator"] = owner, owner in self.keys.operators
