"""Gives each request an id, which its answer has in `X-Request-ID`, and writes a line to stderr when it has been answered.

The application finds the id in its scope, as `tenfold_request`.
"""

import json
import re
import sys
import time
import uuid
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_NAME = re.compile(rb"[!-~]{1,128}")  # the ids that a client may give to its request
_GONE = 499  # the status of a request whose client left before an answer began, as in nginx


class AccessLog:
    """ASGI middleware, the outermost, that sets request ids and writes the log."""

    def __init__(self, app: ASGIApp, form: Literal["none", "text", "json"]):
        self.app, self.form = app, form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        name = given if _NAME.fullmatch(given) else uuid.uuid4().hex.encode()
        scope["tenfold_request"] = name
        status, began = _GONE, time.monotonic()

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name)]
            await send(message)

        try:
            await self.app(scope, receive, named)
        except Exception:
            status = 500
            raise
        finally:
            self._write(scope, status, time.monotonic() - began, name.decode())

    def _write(self, scope: Scope, status: int, seconds: float, name: str) -> None:
        if self.form == "none":
            return
        caller = scope.get("tenfold_caller")
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "status": status,
            "method": scope["method"],
            "path": quote(scope["path"][:500]),
            "seconds": round(seconds, 3),
            "key": caller.name if caller else None,
            "request": name,
        }
        text = json.dumps(line) if self.form == "json" else " ".join(str(value) for value in line.values())
        print(text, file=sys.stderr, flush=True)
