"""Runs the application with uvicorn: from command to port, and down again without dropping what is being answered."""

import ipaddress
import socket
from pathlib import Path

import uvicorn

from tenfold.serve.api.app import ServerOptions, make_app
from tenfold.serve.api.metrics import Metrics
from tenfold.serve.api.service import Models
from tenfold.serve.options import EngineOptions
from tenfold.spec.errors import TenfoldError


def model_path(path: Path) -> Path:
    """Where the weights of a generation, a Hugging Face directory or a GGUF file are. Raises TenfoldError for none."""
    path = path / "model" if (path / "model").is_dir() else path
    if not path.exists():
        raise TenfoldError(f"There is no model at {path}: give a generation, a Hugging Face directory or a GGUF file.")
    return path


def model_name(path: Path) -> str:
    """What a model is called where nobody names it."""
    return path.parent.name if path.name == "model" else path.stem if path.suffix == ".gguf" else path.resolve().name


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(models: dict[str, EngineOptions], options: ServerOptions, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Answer until SIGTERM or Ctrl-C; then finish what is running. Raises TenfoldError where that cannot begin."""
    if not is_loopback(host) and not options.keys:
        raise TenfoldError(f"{host} can be reached by others: make a key with `tenfold serve-key NAME` and give --keys.")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TenfoldError(f"Port {port} of {host} cannot be used ({error.strerror}): choose another with --port.") from None
    app = make_app(Models(models, options.limits, Metrics(), options.any_name), options)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=int(options.drain_seconds),
        timeout_keep_alive=30,
    )
