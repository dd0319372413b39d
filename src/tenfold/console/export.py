"""The console as static files, for any web server."""

import shutil
from pathlib import Path

import msgspec

from tenfold.console.document import files_of
from tenfold.console.site import INDEX, POLICY, WEB, address, all_views, documents, index, inside, is_public
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import atomic_folder, make_folder

PAGE = WEB / "index.html"


def export(home: Path, out: Path) -> Path:
    """Write the page, the documents of all views except the private ones, and the files that they name; returns `out`.

    Raises TenfoldError where the home does not exist, or where `out` is not empty.
    """
    if not home.is_dir():
        raise TenfoldError(f"There is no directory {home}: give the home of the generations by --home.")
    views = {name: view for name, view in all_views().items() if not view.private}
    with atomic_folder(out) as scratch:
        _write_page(scratch / "index.html")
        scripts = {f"{view.name}.js": view.script for view in views.values() if view.script is not None}
        own = {str(source.relative_to(WEB)): source for source in WEB.rglob("*") if source.is_file() and source != PAGE}
        for name, source in {**own, **scripts}.items():
            _copy(source, scratch / "web" / name)
        _write(scratch / INDEX, index(home, views, live=False))
        for view, name, made in documents(views, home, private=False):
            _write(scratch / address(view, name), made)
            for file in files_of(made):
                _copy_shown(home, file, scratch / "files")
    return out


def _write_page(target: Path) -> None:
    """Write the page with its content security policy in a meta element, since another web server does not send ours."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    target.write_text(PAGE.read_text().replace("<title>", f"{policy}\n<title>", 1))


def _write(path: Path, value: object) -> None:
    make_folder(path.parent)
    path.write_bytes(msgspec.json.encode(value))


def _copy_shown(home: Path, file: str, files: Path) -> None:
    """Copy a file, unless that is done, it is outside the home, or it may hold what people said."""
    source = inside(home, file)
    if source is not None and is_public(file) and not (files / file).exists():
        _copy(source, files / file)


def _copy(source: Path, target: Path) -> None:
    make_folder(target.parent)
    shutil.copyfile(source, target)
