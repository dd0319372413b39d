"""Runs the application with uvicorn, and ends it without dropping answers that are under way."""

import ipaddress
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn
from msgspec.structs import replace

from tenfold.serve.api.app import make_app
from tenfold.serve.api.connection import BACKLOG, Connection, most_connections
from tenfold.serve.api.keys import Keys
from tenfold.serve.api.models import Loader, Models, load_model
from tenfold.serve.options import EngineOptions, ServerOptions
from tenfold.spec.errors import TenfoldError


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(
    models: dict[str, EngineOptions], options: ServerOptions, load: Loader = load_model, on_ready: Callable[[], None] = lambda: None
) -> None:
    """Answer until SIGTERM or Ctrl-C, then finish what is running; `on_ready` is called when the first model can answer.

    Raises TenfoldError if that cannot begin.
    """
    host, port = options.host, options.port
    if not is_loopback(host) and not (options.keys and Keys.read(options.keys)):
        raise TenfoldError(f"{host} can be reached by others: make a key with `tenfold serve-key NAME` and give --keys.")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TenfoldError(f"Port {port} of {host} cannot be used ({error.strerror}): choose another with --port.") from None
    limits = options.limits if options.keys else replace(options.limits, key_share=1.0)
    app = make_app(Models(models, limits, options.any_name, load), options)
    connection: Any = partial(Connection, options.connections, most_connections(options.connections))
    logging.getLogger("uvicorn.error").addFilter(lambda _: app.state.failed is None)  # a sentence in place of its trace
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=int(options.drain_seconds),
        http=connection,
        backlog=BACKLOG,
        timeout_keep_alive=round(options.connections.idle_timeout),
    )
    server = _Server(config, on_ready)
    try:
        server.run()
    except KeyboardInterrupt:
        return
    except SystemExit:
        pass
    if not server.started:
        raise app.state.failed or TenfoldError(f"The server on {host}:{port} could not start.")


class _Server(uvicorn.Server):
    """It says when it answers."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]):
        super().__init__(config)
        self.on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.on_ready()
