"""One address in front of several servers."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from tenfold.fleet.front.options import FrontOptions
from tenfold.serve.options import ServerOptions


def front(
    file: Annotated[Path, Meta(description='The replicas: {"version": 1, "replicas": ["http://127.0.0.1:9001"]}.')],
    /,
    *,
    options: FrontOptions = FrontOptions(),
    server: ServerOptions = ServerOptions(),
) -> None:
    """Answer requests to /v1 by one of several `tenfold serve`, which come and go as they are written into the file.

    Example: tenfold fleet front replicas.json --port 8000
    """
    from tenfold.fleet.front.app import serve_front

    serve_front(file, options, server)
