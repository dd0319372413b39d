"""The console as static files, for any web server."""

import shutil
from pathlib import Path

import msgspec

from tenfold.console.document import files_of
from tenfold.console.site import INDEX, POLICY, WEB, address, all_views, documents, index, inside, is_public
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import make_folder, whole_folder


def export(home: Path, out: Path) -> Path:
    """Write the page, the documents of all views but the private ones, and the files that these name; returns `out`.

    Raises TenfoldError where the home does not exist, or `out` holds something already.
    """
    if not home.is_dir():
        raise TenfoldError(f"There is no directory {home}: name the home of the generations by --home.")
    views = {name: view for name, view in all_views().items() if not view.private}
    with whole_folder(out) as scratch:
        shutil.copytree(WEB, scratch / "web")
        _write_page(scratch / "web" / "index.html", scratch / "index.html")
        for view in views.values():
            if view.script is not None:
                shutil.copyfile(view.script, scratch / "web" / f"{view.name}.js")
        _write(scratch / INDEX, index(home, views, live=False))
        for view, name, made in documents(views, home, private=False):
            _write(scratch / address(view, name), made)
            for file in files_of(made):
                _copy(home, file, scratch / "files")
    return out


def _write_page(source: Path, target: Path) -> None:
    """The page with its policy in itself, since no server of ours sends that."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    target.write_text(source.read_text().replace("<title>", f"{policy}\n<title>", 1))
    source.unlink()


def _write(path: Path, value: object) -> None:
    make_folder(path.parent)
    path.write_bytes(msgspec.json.encode(value))


def _copy(home: Path, file: str, files: Path) -> None:
    """Beside the documents, unless it is there, elsewhere, or holds what people said."""
    source = inside(home, file)
    if source is not None and is_public(file) and not (files / file).exists():
        make_folder((files / file).parent)
        shutil.copyfile(source, files / file)
