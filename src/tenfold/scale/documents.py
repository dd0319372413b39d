"""A generation's `climb.json`, `forecast.json` and `score.json`: JSON objects that say their version."""

from pathlib import Path
from typing import Any

from tenfold.spec.files import write_json
from tenfold.spec.versions import read_document

VERSION = 1
TRAJECTORY = "trajectory.json"  # of a run: its loss as it was forecast along the way, as `tenfold law trajectory --json` says it


def write(path: Path, document: dict[str, Any]) -> None:
    write_json(path, {"version": VERSION, **document})


def read(path: Path) -> dict[str, Any]:
    """One of them. Raises TenfoldError where it is missing, damaged, or of another version."""
    return read_document(path, VERSION, "climb again")
