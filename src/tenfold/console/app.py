"""The console as a web application: its page, the documents of its views, the files that documents name, and events."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from fastapi import Depends, FastAPI, Request
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse, Response

from tenfold.console.alerts import alerts
from tenfold.console.document import View
from tenfold.console.events import Feeds, changes
from tenfold.console.gate import Below, ConsoleGate
from tenfold.console.options import ConsoleOptions
from tenfold.console.site import INDEX, POLICY, WEB, all_views, document, index, inside, is_named, is_public
from tenfold.console.webhook import send_alerts
from tenfold.serve.api.callers import CurrentCaller, operator_only
from tenfold.serve.api.errors import AnswerFailures, ApiError, answer_errors
from tenfold.serve.page.routes import Fresh
from tenfold.spec.errors import TenfoldError

# A file may hold anything: in this sandbox it runs no script and has no origin.
FILE_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
SHOWN = {".html": "text/html", ".png": "image/png", ".json": "application/json"}  # others are shown as text
NO_CACHE = {"Cache-Control": "no-cache"}


def make_app(options: ConsoleOptions) -> FastAPI:
    """The application for the home in the options. Raises TenfoldError where that does not exist."""
    if not options.home.is_dir():
        raise TenfoldError(f"There is no directory {options.home}: give the home of the generations by --home.")

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        look = partial(alerts, options.home, options.fleet)
        sending = asyncio.create_task(send_alerts(options.webhook, options.home, look)) if options.webhook else None
        yield
        if sending is not None:
            sending.cancel()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.options, app.state.feeds, app.state.failed = options, Feeds(), None
    app.state.views = all_views()
    answer_errors(app)
    app.add_middleware(AnswerFailures)  # a middleware that is added later wraps the earlier ones
    app.add_middleware(GZipMiddleware, minimum_size=1000)
    listening = options.listening()
    app.add_middleware(ConsoleGate, options=listening, limits=listening.limits)
    app.add_middleware(Below, path=options.root_path.rstrip("/"))
    _add_page(app, options)
    _add_documents(app, options)
    for view in app.state.views.values():
        _add_view(app, view, options.home)
    app.mount("/web", Fresh(directory=WEB))
    return app


def _add_page(app: FastAPI, options: ConsoleOptions) -> None:
    policy = f"{POLICY}; frame-ancestors 'none'"

    @app.get("/")
    async def page() -> Response:
        return FileResponse(WEB / "index.html", headers={"Content-Security-Policy": policy, **NO_CACHE})

    @app.get(f"/{INDEX}")
    async def console() -> Response:
        return _json(await asyncio.to_thread(index, options.home, app.state.views, live=True, fleet=options.fleet))


def _add_documents(app: FastAPI, options: ConsoleOptions) -> None:
    home, looking = options.home, asyncio.Lock()  # checking a file that no document names takes long: one check at a time

    @app.get("/files/{file:path}")
    async def show(file: str, caller: CurrentCaller) -> Response:
        path, named = inside(home, file), False
        if path is not None and (caller.is_operator or is_public(file)):
            async with looking:
                named = await asyncio.to_thread(is_named, app.state.views, home, file, private=caller.is_operator)
        if path is None or not named:
            raise ApiError(404, "There is no such file, or it needs the key of an operator.")
        kind = SHOWN.get(PurePosixPath(file).suffix, "text/plain; charset=utf-8")
        return FileResponse(path, media_type=kind, headers={"Content-Security-Policy": FILE_POLICY, **NO_CACHE})


def _add_view(app: FastAPI, view: View, home: Path) -> None:
    allowed = [Depends(operator_only)] if view.private else []
    if view.routes is not None:
        view.routes(app)  # before the general routes, which match every name
    if view.script is not None:
        script = view.script
        app.get(f"/web/{view.name}.js")(lambda: FileResponse(script, media_type="text/javascript", headers=NO_CACHE))

    async def overview() -> Response:
        return await _answer(lambda: document(view, home, ""))

    async def one(name: str) -> Response:
        return await _answer(lambda: document(view, home, name))

    async def follow(request: Request) -> Response:
        name = request.path_params.get("name", "")
        await _answer(lambda: document(view, home, name))  # an error answer where there is no such document
        look = changes(lambda: msgspec.json.encode(document(view, home, name)))
        return app.state.feeds.stream(f"{view.name}/{name}", look)

    app.get(f"/data/{view.name}.json", dependencies=allowed)(overview)
    app.get(f"/data/{view.name}/{{name:path}}.json", dependencies=allowed)(one)
    app.get(f"/events/{view.name}", dependencies=allowed)(follow)
    app.get(f"/events/{view.name}/{{name:path}}", dependencies=allowed)(follow)


async def _answer(make: Callable[[], Any]) -> Response:
    try:
        return _json(await asyncio.to_thread(make))
    except TenfoldError as error:
        raise ApiError(404, str(error)) from None


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json", headers=NO_CACHE)
