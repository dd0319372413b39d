"""Runs an application with uvicorn, with limits on connections, and shuts it down without dropping running answers."""

import ipaddress
import logging
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from tenfold.serve.api.connection import BACKLOG, Connection, most_connections
from tenfold.serve.api.keys import Keys
from tenfold.serve.options import ServerOptions
from tenfold.spec.errors import TenfoldError


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_address(options: ServerOptions) -> None:
    """Raises TenfoldError for an address that other machines could reach without keys, or that cannot be bound."""
    host, port = options.host, options.port
    if not is_loopback(host) and not (options.keys and Keys.read(options.keys)):
        raise TenfoldError(f"{host} can be reached by others: make a key with `tenfold serve-key NAME` and give --keys.")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TenfoldError(f"Port {port} of {host} cannot be used ({error.strerror}): choose another with --port.") from None


def listen(
    app: FastAPI, options: ServerOptions, on_ready: Callable[[], None] = lambda: None, on_exit: Callable[[], None] = lambda: None
) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish the running answers.

    `on_ready` is called when the application has started, `on_exit` at the signal, before the running answers are
    finished. Raises TenfoldError if the server cannot start; the application's own if it has set `app.state.failed`.
    """
    connection: Any = partial(Connection, options.connections, most_connections(options.connections))
    # The sentence is printed instead of a traceback.
    logging.getLogger("uvicorn.error").addFilter(lambda _: app.state.failed is None)
    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        log_level="warning",
        timeout_graceful_shutdown=int(options.drain_seconds),
        http=connection,
        backlog=BACKLOG,
        timeout_keep_alive=round(options.connections.idle_timeout),
    )
    server = _Server(config, on_ready, on_exit)
    try:
        server.run()
    except KeyboardInterrupt:
        return
    except SystemExit:
        pass
    if not server.started:
        raise app.state.failed or TenfoldError(f"The server on {options.host}:{options.port} could not start.")


class _Server(uvicorn.Server):
    """uvicorn's server, with callbacks for the start and for the signal that ends it."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None], on_exit: Callable[[], None]):
        super().__init__(config)
        self.on_ready, self.on_exit = on_ready, on_exit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.on_exit()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.on_ready()
