"""The front of the fleet's chat servers: requests go to the one with the fewest, and what was not accepted goes to another."""

import json
import threading
import time
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tenfold.spec.errors import TenfoldError


@dataclass(frozen=True)
class Answer:
    """`first_s` is from the request to its first token, `sent` how often it was sent; `lost` where it began and broke off."""

    first_s: float
    seconds: float
    sent: int
    lost: bool


class Dispatcher:
    """Servers come and go; those that are asked already finish their answers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[str, int] = {}
        self.ended = False

    def open(self, url: str, role: str) -> None:
        """Let requests go to a server of chat."""
        if role == "chat":
            self._asked[url] = 0

    def close(self, url: str) -> None:
        """Let no further requests go there."""
        with self._lock:
            self._asked.pop(url, None)

    def ask(self, body: dict[str, Any]) -> Answer:
        """Send a request for a streamed completion until some server accepts it: it has when its answer begins.

        Raises TenfoldError where the dispatcher has ended, or a server says that the request is wrong.
        """
        began, sent = time.monotonic(), 0
        while not self.ended:
            with self._lock:
                url = min(self._asked, key=lambda one: self._asked[one], default="")
                if url:
                    self._asked[url] += 1
            if url:
                sent += 1
                answer = _send(url, body, began, sent)
                with self._lock:
                    if url in self._asked:
                        self._asked[url] -= 1
                if answer is not None:
                    return answer
            time.sleep(0.05)
        raise TenfoldError("The fleet ended before it answered a request.")


def _send(url: str, body: dict[str, Any], began: float, sent: int) -> Answer | None:
    """The answer, or None where the server did not begin one."""
    first_s, whole = None, False
    request = Request(f"{url}/v1/completions", json.dumps({**body, "stream": True}).encode(), {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=600) as response:
            first_s = time.monotonic() - began
            whole = response.read().endswith(b"data: [DONE]\n\n")
    except HTTPError as error:
        if error.code not in (429, 503):
            raise TenfoldError(f"{url} refused a request: {error.read().decode()}") from None
    except (OSError, HTTPException):
        pass
    return None if first_s is None else Answer(first_s, time.monotonic() - began, sent, not whole)
