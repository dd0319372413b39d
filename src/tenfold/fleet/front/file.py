"""The file with the replicas of a front, `{"version": 1, "replicas": ["http://127.0.0.1:9001"]}`, and the lock file beside it."""

from pathlib import Path
from typing import Annotated

import msgspec

from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import write_json
from tenfold.spec.versions import read_document

VERSION = 1
Address = Annotated[str, msgspec.Meta(pattern=r"^https?://[^/?#\s]+$")]


def lock_of(file: Path) -> Path:
    """The lock that the front of `file` holds while it runs."""
    return file.with_suffix(".lock")


def read_replicas(file: Path) -> list[str]:
    """The replicas' addresses. Raises TenfoldError where the file is missing or damaged."""
    instead = f'write {{"version": {VERSION}, "replicas": ["http://127.0.0.1:9001"]}}'
    try:
        return msgspec.convert(read_document(file, VERSION, instead).get("replicas"), list[Address])
    except (msgspec.ValidationError, OSError):
        raise TenfoldError(f"{file} has no list of replicas: {instead}.") from None


def write_replicas(file: Path, url: str, replicas: list[str]) -> None:
    """Write the file atomically. `url` is the front's own address."""
    write_json(file, {"version": VERSION, "url": url, "replicas": replicas})
