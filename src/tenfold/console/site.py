"""What a console consists of, whether a server shows it or an export holds it: views, documents, and the files that these name."""

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
TAB = "console."  # names of entry points `tenfold.routes` that are views of the console begin so
INDEX = "data/console.json"
# Files that everybody who sees the console may read: none of them holds what people said.
PUBLIC = {".json", ".jsonl", ".csv", ".html", ".png", ".svg", ".toml", ".txt", ".md", ".log"}
PEOPLE = {"data", "conversations", "feedback", "events", "lineage.json"}  # names within a home that hold it, or say whose it is
# Without inline code. Scripts come from the console alone, and HTML from text passes DOMPurify or is refused.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)


def all_views() -> dict[str, View]:
    """The views by name: the console's own, then those of other packages."""
    others = (load("routes", name) for name in plugins("routes") if name.startswith(TAB))
    return {view.name: view for view in (*VIEWS, *others)}


def index(home: Path, views: dict[str, View], *, live: bool, fleet: Path | None = None) -> dict[str, Any]:
    """What the page asks for first: its views, and what needs somebody's attention."""
    listed = [{"name": view.name, "title": view.title, "private": view.private} for view in views.values()]
    return {"live": live, "home": home.resolve().name, "views": listed, "alerts": alerts(home, fleet)}


def document(view: View, home: Path, name: str) -> Any:
    """A view's document. Raises TenfoldError where the view has none of this name, or it cannot be built."""
    if name not in view.names(home):
        raise TenfoldError(f"The view {view.name} has no {name[:200]!r}.")
    return view.document(home, name)


def address(view: View, name: str) -> str:
    """Where a document lies, relative to the page."""
    return f"data/{view.name}{'/' * bool(name)}{name}.json"


def documents(views: dict[str, View], home: Path, *, private: bool) -> Iterator[tuple[View, str, Any]]:
    """Every document of all views, or of those that are not private; one that cannot be built is left out."""
    for view in views.values():
        if view.private and not private:
            continue
        for name in view.names(home):
            try:
                yield view, name, view.document(home, name)
            except TenfoldError:
                continue


def is_named(views: dict[str, View], home: Path, file: str, *, private: bool) -> bool:
    """Whether a document names a file. Overviews and the documents of the folders that it lies in are asked first."""
    shown = [(view, name) for view in views.values() if private or not view.private for name in view.names(home)]
    for view, name in sorted(shown, key=lambda one: bool(one[1]) and not file.startswith(f"{one[1]}/")):
        with suppress(TenfoldError):
            if file in files_of(view.document(home, name)):
                return True
    return False


def is_public(file: str) -> bool:
    """Whether a file of a home holds nothing of what people said."""
    path = PurePosixPath(file)
    return path.suffix in PUBLIC and not PEOPLE & set(path.parts)


def inside(home: Path, file: str) -> Path | None:
    """The file of this relative path, where it is one and lies in the home, also behind links."""
    try:
        path = (home / file).resolve(strict=True)
        path.relative_to(home.resolve())
    except (OSError, ValueError):
        return None
    return path if path.is_file() and not PurePosixPath(file).is_absolute() else None
