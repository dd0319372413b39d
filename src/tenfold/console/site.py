"""What served and exported consoles have in common: views, their documents, and the files that documents name."""

from collections.abc import Iterator
from contextlib import suppress
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from tenfold.console.alerts import alerts
from tenfold.console.document import View, files_of
from tenfold.console.views import VIEWS
from tenfold.spec.errors import TenfoldError
from tenfold.spec.plugins import load, plugins

WEB = Path(str(resources.files("tenfold.console").joinpath("web")))
TAB = "console."  # prefix of the entry points `tenfold.routes` that are views of the console
INDEX = "data/console.json"
# Suffixes of files that everybody may read who sees the console: such files do not hold what people said.
PUBLIC = {".json", ".jsonl", ".csv", ".html", ".png", ".svg", ".toml", ".txt", ".md", ".log"}
PEOPLE = {
    "data",
    "conversations",
    "feedback",
    "events",
    "lineage.json",
}  # files and folders of a home that hold what people said, or name the people
# No inline code: scripts come from the console only, and HTML that is made of text must pass DOMPurify.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)


def all_views() -> dict[str, View]:
    """The views by name: the console's own, then those of plugins."""
    others = (load("routes", name) for name in plugins("routes") if name.startswith(TAB))
    return {view.name: view for view in (*VIEWS, *others)}


def index(home: Path, views: dict[str, View], *, live: bool, fleet: Path | None = None) -> dict[str, Any]:
    """The document that the page loads first: the views and the alerts."""
    listed = [{"name": view.name, "title": view.title, "private": view.private} for view in views.values()]
    return {"live": live, "home": home.resolve().name, "views": listed, "alerts": alerts(home, fleet)}


def document(view: View, home: Path, name: str) -> Any:
    """A document of a view. Raises TenfoldError where the view has no such document, or it cannot be built."""
    if name not in view.names(home):
        raise TenfoldError(f"The view {view.name} has no {name[:200]!r}.")
    return view.document(home, name)


def address(view: View, name: str) -> str:
    """The address of a document, relative to the page."""
    return f"data/{view.name}{'/' * bool(name)}{name}.json"


def documents(views: dict[str, View], home: Path, *, private: bool) -> Iterator[tuple[View, str, Any]]:
    """All documents as (view, name, document), with those of private views where `private`. Documents that cannot be built are
    skipped."""
    for view in views.values():
        if view.private and not private:
            continue
        for name in view.names(home):
            try:
                yield view, name, view.document(home, name)
            except TenfoldError:
                continue


def is_named(views: dict[str, View], home: Path, file: str, *, private: bool) -> bool:
    """Whether any document names a file. Overviews and documents of the file's folders are built first, since these probably do."""
    shown = [(view, name) for view in views.values() if private or not view.private for name in view.names(home)]
    for view, name in sorted(shown, key=lambda one: bool(one[1]) and not file.startswith(f"{one[1]}/")):
        with suppress(TenfoldError):
            if file in files_of(view.document(home, name)):
                return True
    return False


def is_public(file: str) -> bool:
    """Whether a file of a home is certain not to hold what people said."""
    path = PurePosixPath(file)
    return path.suffix in PUBLIC and not PEOPLE & set(path.parts)


def inside(home: Path, file: str) -> Path | None:
    """The file at this relative path; None where there is no such file, or it lies outside the home after links are resolved."""
    try:
        path = (home / file).resolve(strict=True)
        path.relative_to(home.resolve())
    except (OSError, ValueError):
        return None
    return path if path.is_file() and not PurePosixPath(file).is_absolute() else None
