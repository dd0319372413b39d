"""Starts a server in a process of its own, for code that needs one while it does other work."""

import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tenfold.launch.job import Job, open_launcher
from tenfold.serve.options import EngineOptions, ServerOptions
from tenfold.spec.errors import TenfoldError

if TYPE_CHECKING:
    from tenfold.serve.api.models import Loader

START_S = 240.0  # a server that does not answer within these seconds has failed


def free_url() -> str:
    """A loopback URL with a port on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def answers(url: str) -> bool:
    """Whether the server at `url` has loaded its model and is healthy."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@contextmanager
def serving(models: dict[str, EngineOptions], *, load: "Loader | None" = None, **options: Any) -> Iterator[str]:
    """Run a server of `models` with `options` of ServerOptions, and give its URL; it ends with the context or this process.

    `load` loads a model in another way than `tenfold serve` does. Raises TenfoldError if the server does not start.
    """
    from tenfold.serve.api.models import load_model
    from tenfold.serve.api.server import serve

    url, launcher, end = free_url(), open_launcher("local"), time.monotonic() + START_S
    server = ServerOptions(port=int(url.rpartition(":")[2]), **{"access_log": "none", **options})
    try:
        job = launcher.submit(Job("serve", function=serve, arguments=(models, server, load or load_model), grace_s=10))
        while not answers(url):
            if job.future.done() or time.monotonic() > end:
                raise TenfoldError(f"The server of {', '.join(models)} did not start: see what it printed.")
            time.sleep(0.1)
        yield url
    finally:
        launcher.close()
