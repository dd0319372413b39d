"""One address for several servers."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from tenfold.fleet.front.options import FrontOptions
from tenfold.serve.options import ServerOptions


def front(
    file: Annotated[Path, Meta(description='File with the replicas: {"version": 1, "replicas": ["http://127.0.0.1:9001"]}.')],
    /,
    *,
    options: FrontOptions = FrontOptions(),
    server: ServerOptions = ServerOptions(),
) -> None:
    """Forward requests to /v1 to one of several `tenfold serve` processes. Edit the file to add or remove them while the front
    runs.

    Example: tenfold fleet front replicas.json --port 8000
    """
    from tenfold.fleet.front.app import serve_front

    serve_front(file, options, server)
