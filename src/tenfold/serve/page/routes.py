"""The chat page at `/`, and its scripts and styles under `/page`."""

from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles

FILES = Path(str(resources.files("tenfold.serve.page").joinpath("static")))

# The page runs only the server's scripts and styles, and connects only to the server. HTML made from text must pass DOMPurify, as
# trusted types enforce. Images that a user adds to a message are data URLs.
POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "font", "connect")),
        "img-src 'self' data:",
        *(f"{kind} 'none'" for kind in ("base-uri", "form-action", "frame-ancestors")),
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)


class Fresh(StaticFiles):
    """Files that a browser must revalidate, so that a page of one version does not run scripts of another."""

    def file_response(self, *given: Any, **named: Any) -> Response:
        answer = super().file_response(*given, **named)
        answer.headers["cache-control"] = "no-cache"
        return answer


def add_routes(app: FastAPI) -> None:
    """Add the page to the application."""

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return HTMLResponse((FILES / "index.html").read_text(), headers=headers)

    app.mount("/page", Fresh(directory=FILES))
