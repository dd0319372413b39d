"""Reading and writing of a generation's `climb.json`, `forecast.json` and `score.json`, JSON objects with a version."""

from pathlib import Path
from typing import Any

from tenfold.spec.files import write_json
from tenfold.spec.versions import read_document

VERSION = 1
TRAJECTORY = "trajectory.json"  # the forecast of the loss along a run, in the form of `tenfold law trajectory --json`


def write(path: Path, document: dict[str, Any]) -> None:
    write_json(path, {"version": VERSION, **document})


def read(path: Path) -> dict[str, Any]:
    """Read one of these documents. Raises TenfoldError where it is missing, damaged, or of another version."""
    return read_document(path, VERSION, "climb again")
