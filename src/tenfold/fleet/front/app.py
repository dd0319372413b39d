"""The front: a reverse proxy with one address for all replicas of a chat model, in a process that outlives the fleet's controller.

A file lists the replicas (`file.py`); it must be replaced atomically, by writing another file and renaming it. A replica that is
removed from the file gets no new requests, and finishes the answers that it has begun.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from msgspec.structs import replace

from tenfold.fleet.front.file import lock_of, read_replicas
from tenfold.fleet.front.forward import Forward
from tenfold.fleet.front.metrics import FrontMetrics
from tenfold.fleet.front.options import FrontOptions
from tenfold.fleet.front.replicas import LOOK_S, Replica, Replicas
from tenfold.serve.api.access_log import AccessLog
from tenfold.serve.api.budget import Budget
from tenfold.serve.api.connection import most_connections
from tenfold.serve.api.dependencies import CurrentCaller, operator_only
from tenfold.serve.api.errors import AnswerFailures, answer_errors
from tenfold.serve.api.gate import Gate
from tenfold.serve.api.listen import check_address, listen
from tenfold.serve.api.streaming import cancel
from tenfold.serve.options import ServerOptions
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import one_at_a_time

CONNECT = httpx2.Timeout(None, connect=5.0, write=60.0)


def serve_front(file: Path, options: FrontOptions, server: ServerOptions) -> None:
    """Serve as the front of the replicas in `file` until SIGTERM or Ctrl-C.

    Raises TenfoldError where it cannot start, or where another front of this file runs.
    """
    check_address(server)
    replicas = Replicas(options.load_factor if options.affinity else None)
    replicas.set(read_replicas(file))
    with one_at_a_time(lock_of(file), f"the front of {file}"):
        listen(make_front(file, replicas, options, server), server)


def make_front(file: Path, replicas: Replicas, options: FrontOptions, server: ServerOptions) -> FastAPI:
    """The front's application, behind the checks of `tenfold serve`: host names, keys, rates and sizes of bodies."""
    limits = server.limits if server.keys else replace(server.limits, key_share=1.0)
    # Each request has one connection to its client and one to a replica.
    most = min(limits.max_queue, most_connections(server.connections) // 2)
    kept = httpx2.Limits(max_keepalive_connections=most)
    client = httpx2.AsyncClient(timeout=CONNECT, limits=kept, trust_env=False)
    client.headers.clear()  # a forwarded request has its client's headers only

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client, httpx2.AsyncClient(timeout=options.check_timeout, trust_env=False) as checking:
            tasks = [asyncio.create_task(_follow(file, replicas)), asyncio.create_task(_watch(replicas, options, checking))]
            yield
            await cancel(*tasks)

    app = FastAPI(title="Tenfold's front", lifespan=lifespan, openapi_url=None)
    app.state.failed, metrics = None, FrontMetrics()
    answer_errors(app)
    app.add_middleware(AnswerFailures)  # a middleware that is added later wraps the earlier ones
    app.add_middleware(Gate, options=server, limits=limits)
    if server.allowed_origins:
        app.add_middleware(CORSMiddleware, allow_origins=server.allowed_origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(AccessLog, form=server.access_log)
    queue = Budget(most, limits.key_share)
    forward = Forward(replicas, metrics, queue, limits.timeout_seconds, client)
    app.add_route("/v1/{path:path}", forward, methods=["GET", "POST"])  # type: ignore[arg-type]

    @app.get("/health")
    async def health() -> Response:
        listed = [replica.is_well for replica in replicas.all if not replica.drains]
        well = sum(listed)
        said = {"status": "ok" if well else "no replica is well", "replicas": len(listed), "well": well}
        return JSONResponse(said, 200 if well else 503)

    @app.get("/metrics")
    async def shown(caller: CurrentCaller) -> Response:
        if server.metrics == "operators":
            await operator_only(caller)
        return Response(metrics.text(replicas.all), media_type="text/plain; version=0.0.4")

    return app


async def _follow(file: Path, replicas: Replicas) -> None:
    """Follow changes of the file. A file that cannot be read changes nothing, and its error is printed once."""
    seen = b""
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            found = file.read_bytes()
        except OSError as error:
            found = str(error).encode()
        if found != seen:
            seen = found
            try:
                replicas.set(read_replicas(file))
            except TenfoldError as error:
                print(f"{error} The replicas stay as they were.", file=sys.stderr, flush=True)


async def _watch(replicas: Replicas, options: FrontOptions, client: httpx2.AsyncClient) -> None:
    """Check the replicas' health, and end this process after `forsaken_after` seconds without a healthy replica."""
    loop = asyncio.get_running_loop()
    served = loop.time()
    while True:
        replicas.forget()
        await asyncio.gather(*(_check(replica, client) for replica in replicas.all))
        if any(replica.is_well or replica.running for replica in replicas.all):
            served = loop.time()
        if options.forsaken_after and loop.time() - served > options.forsaken_after:
            signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(options.check_every)


async def _check(replica: Replica, client: httpx2.AsyncClient) -> None:
    try:
        replica.check((await client.get(f"{replica.url}/health")).status_code)
    except httpx2.HTTPError:
        replica.check(None)
