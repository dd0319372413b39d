"""Fingerprints of the data from which a folder in a home was made, so that it is found again by content and not by name.

The `manifest.json` of such a folder holds its `recipe`: the hashes and options that determine its content.
"""

import glob
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tenfold.data.text.clean import progress_bar
from tenfold.spec.files import read_facts

BLOCK_BYTES = 2**20
_read: dict[str, str] = {}  # content hash by listing, of the files that this process has read


class Fingerprint(NamedTuple):
    """`content` is a hash of the files' suffixes and bytes, in order; `listing` is a hash of their paths, sizes and times.

    The same listing means the same content, so files are read again only if the listing has changed.
    """

    listing: str
    content: str


def fingerprint(files: Callable[[], Iterable[Path]], known: Mapping[str, str], quiet: bool) -> Fingerprint:
    """The fingerprint of `files`. `known` maps listings to content hashes that were computed earlier."""
    listing, size = listing_of(files())
    content = known.get(listing) or _read.get(listing) or _content(files(), size, quiet)
    _read[listing] = content
    return Fingerprint(listing, content)


def listing_of(files: Iterable[Path]) -> tuple[str, int]:
    """A hash of the files' paths, sizes and times, and their total size in bytes."""
    listing, size = hashlib.sha256(), 0
    for file in files:
        facts = _stat(file)
        size += facts[0]
        listing.update(f"{file.absolute()}\0{facts}\n".encode("utf-8", "surrogateescape"))
    return listing.hexdigest(), size


def known_in(home: Path, name: str) -> dict[str, str]:
    """Content hashes by listing, from the manifests in those folders of `home` whose names begin with `name`."""
    manifests = [read_facts(path) for path in sorted(home.glob(f"{glob.escape(name)}*/manifest.json"))]
    return {m["listing"]: m["recipe"]["content"] for m in manifests if "listing" in m and "recipe" in m}


def folder_of(home: Path, name: str, recipe: Mapping[str, Any]) -> Path:
    """The folder in `home` for what `recipe` makes: `name`, or `name-HASH` if `name` holds something else."""
    plain, other = home / name, home / f"{name}-{digest(recipe)[:8]}"
    return other if other.exists() or (plain.exists() and read_facts(plain / "manifest.json").get("recipe") != recipe) else plain


def digest(value: Any) -> str:
    """A hash of any value that JSON can represent."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _stat(file: Path) -> tuple[int, int, int]:
    try:
        found = file.stat()
    except OSError:
        return 0, 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _content(files: Iterable[Path], size: int, quiet: bool) -> str:
    """A hash of the files. An unreadable file counts as the word `unreadable`, since its documents will be left out."""
    whole, done = hashlib.sha256(), 0
    with progress_bar(quiet) as bar:
        task = bar.add_task("reading", total=size, speed="")
        for file in files:
            one = hashlib.sha256()
            try:
                with file.open("rb") as stream:
                    while block := stream.read(BLOCK_BYTES):
                        one.update(block)
                        done += len(block)
                        bar.update(task, completed=done, description=f"reading {done / 1e6:.0f} MB")
            except OSError:
                one.update(b"unreadable")
            whole.update("".join(file.suffixes[-2:]).lower().encode("utf-8", "surrogateescape") + b"\0" + one.digest())
    return whole.hexdigest()
