"""How a fleet's controller starts, updates and ends its front, and sends requests through it.

The front is a process of its own that continues when its controller is killed; the next controller finds it by its lock file.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tenfold.fleet.front.file import lock_of, write_replicas
from tenfold.serve.start import START_S, free_url
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import holder

FORSAKEN_S = 900  # after so long without a server the front ends, since no controller came back
LEAVE_S = 10  # seconds that the front has to finish its answers
REQUEST_S = 600  # timeout of a request
AGAIN = (429, 502, 503, 504)  # statuses of a front when no server began an answer: the request is sent again


@dataclass(frozen=True)
class Answer:
    """An answer: seconds from the request to its first byte and to its end, how often it was sent to a server (`sent`), and whether
    it broke off (`lost`)."""

    first_s: float
    seconds: float
    sent: int
    lost: bool


class Front:
    """The front of a service of the fleet in `folder`, which keeps its address across restarts. It is started unless it runs.

    Files: NAME.json (its servers), NAME.lock, NAME.log. `path` is the route to which `ask` sends requests.

    It begins without servers, since those of an earlier controller end with that controller. Raises TenfoldError where the front
    does not start.
    """

    def __init__(self, folder: Path, name: str = "front", path: str = "/v1/completions"):
        self._file, self._log, self._path = folder / f"{name}.json", folder / f"{name}.log", path
        self._held = lock_of(self._file)
        self._servers, self._lock = list[str](), threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.url, self.ended = self._address(), False
        self._tell()
        if not self.runs():
            self.start()
            self._wait()

    def open(self, url: str) -> None:
        """Add a server."""
        with self._lock:
            self._servers.append(url)
            self._tell()

    def close(self, url: str) -> None:
        """Remove a server: it gets no further requests, and finishes the answers that it has begun."""
        with self._lock:
            if url in self._servers:
                self._servers.remove(url)
                self._tell()

    def runs(self) -> bool:
        """Whether the front runs or is starting."""
        return (self._process is not None and self._process.poll() is None) or holder(self._held) is not None

    def start(self) -> None:
        """Start the front's process, which does not end with this one."""
        port = self.url.rpartition(":")[2]
        options = ("--port", port, "--access-log", "none", "--forsaken-after", str(FORSAKEN_S), "--drain-seconds", str(LEAVE_S))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tenfold", "fleet", "front", self._file, *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def end(self) -> None:
        """End the front: it may finish its answers, and is killed where it takes too long."""
        self.ended = True
        for number, seconds in ((signal.SIGTERM, LEAVE_S + 5), (signal.SIGKILL, 5)):
            if process := self._id():
                with suppress(ProcessLookupError):
                    os.kill(process, number)
            end = time.monotonic() + seconds
            while self.runs() and time.monotonic() < end:
                time.sleep(0.05)

    def ask(self, body: dict[str, Any]) -> Answer:
        """Send a request, again and again until an answer begins.

        Raises TenfoldError where the fleet has ended, or a server rejects the request.
        """
        began, sent = time.monotonic(), 0
        while not self.ended:
            answer = _ask(self.url + self._path, body, began, sent)
            if answer is not None:
                return answer
            sent += 1
            time.sleep(0.05)
        raise TenfoldError("The fleet ended before it answered a request.")

    def _id(self) -> int | None:
        if self._process is not None and self._process.poll() is None:
            return self._process.pid
        return (holder(self._held) or {}).get("process")

    def _address(self) -> str:
        try:
            return str(json.loads(self._file.read_text())["url"])
        except (OSError, ValueError, KeyError, TypeError):
            return free_url()

    def _tell(self) -> None:
        write_replicas(self._file, self.url, self._servers)

    def _wait(self) -> None:
        end = time.monotonic() + START_S
        while not _listens(self.url):
            if not self.runs() or time.monotonic() > end:
                raise TenfoldError(f"The front of {self._file.parent} did not start: see {self._log}.")
            time.sleep(0.05)


def _listens(url: str) -> bool:
    """Whether the front answers, with any status."""
    try:
        with urlopen(f"{url}/health", timeout=5):
            return True
    except HTTPError:
        return True
    except (OSError, HTTPException):
        return False


def _ask(url: str, body: dict[str, Any], began: float, sent: int) -> Answer | None:
    """Send the request once. Returns the answer, or None where none began."""
    first_s, whole, tries = None, False, 0
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=REQUEST_S) as response:
            first_s, tries = time.monotonic() - began, int(response.headers["X-Tenfold-Tries"] or 1)
            answer = response.read()  # raises IncompleteRead where the connection breaks off
            whole = not body.get("stream") or answer.endswith(b"data: [DONE]\n\n")
    except HTTPError as error:
        if error.code not in AGAIN:
            raise TenfoldError(f"{url} refused a request: {error.read().decode()}") from None
    except (OSError, HTTPException):
        pass
    return None if first_s is None else Answer(first_s, time.monotonic() - began, sent + tries, not whole)
