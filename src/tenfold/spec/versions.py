"""Versions of the files that Tenfold writes and reads. A file without a version has version 1."""

import json
from pathlib import Path
from typing import Any

from tenfold.spec.errors import TenfoldError


def require_version(found: Any, known: tuple[int, ...], where: Path | str, instead: str) -> None:
    """Raises TenfoldError if the version `found` is not in `known`. For an older one, `instead` says what to do."""
    if found in known:
        return
    read = " and ".join(map(str, known))
    newer = isinstance(found, int) and found > max(known)
    todo = "use the Tenfold that wrote it, or a later one" if newer else instead
    raise TenfoldError(f"{where} has version {found}, and this Tenfold reads version {read}: {todo}.")


def read_document(path: Path, version: int, instead: str) -> dict[str, Any]:
    """The JSON object in a file of this version. Raises TenfoldError if it is missing, damaged, or of another version."""
    try:
        document = json.loads(path.read_text())
        found = document.get("version", 1)
    except FileNotFoundError:
        raise TenfoldError(f"There is no {path}: {instead}.") from None
    except (ValueError, AttributeError):
        raise TenfoldError(f"{path} is damaged: {instead}.") from None
    require_version(found, (version,), path, instead)
    return document
