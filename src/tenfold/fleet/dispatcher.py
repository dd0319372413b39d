"""The front of the fleet's chat servers: requests go to the one with the fewest, and what was not accepted goes to another."""

import http.client
import json
import threading
import time
from dataclasses import dataclass
from typing import Any

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
            with self._lock:
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
            url = self._least()
            if url is None:
                time.sleep(0.05)
                continue
            sent += 1
            accepted, lost, first_s = _post(url, body, began)
            with self._lock:
                if url in self._asked:
                    self._asked[url] -= 1
            if accepted:
                return Answer(first_s, time.monotonic() - began, sent, lost)
            time.sleep(0.05)
        raise TenfoldError("The fleet ended before it answered a request.")

    def _least(self) -> str | None:
        with self._lock:
            url = min(self._asked, key=lambda one: self._asked[one], default=None)
            if url is not None:
                self._asked[url] += 1
        return url


def _post(url: str, body: dict[str, Any], began: float) -> tuple[bool, bool, float]:
    """Whether the server began to answer, whether it then broke off, and seconds to the first token."""
    link = http.client.HTTPConnection(url.removeprefix("http://"), timeout=120)
    accepted, first_s = False, 0.0
    try:
        link.request("POST", "/v1/completions", json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
        response = link.getresponse()
        accepted, first_s = response.status == 200, time.monotonic() - began
        if response.status not in (200, 429, 503):
            raise TenfoldError(f"{url} refused a request: {response.read().decode()}")
        return accepted, accepted and not response.read().endswith(b"data: [DONE]\n\n"), first_s
    except (OSError, http.client.HTTPException):
        return accepted, accepted, first_s
    finally:
        link.close()
