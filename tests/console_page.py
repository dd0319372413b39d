"""A console in a thread, for tests of its page, and what axe finds in a page."""

import socket
import threading
from contextlib import contextmanager
from importlib import resources

import uvicorn

from tenfold.console.app import make_app


@contextmanager
def running(options):
    """The address of a console on a free port, in a thread."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(options), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join()


def violations(page):
    """What axe finds wrong: the rule, and the first elements."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text())
    return page.evaluate("axe.run().then(result => result.violations.map(v => [v.id, v.nodes.map(n => n.html).slice(0, 3)]))")
