"""The lock of a run: who trains in its directory."""

from pathlib import Path
from typing import Any

from tenfold.spec.files import holder

LOCK = ".training.lock"  # held by the first process of the run


def trainer(directory: Path) -> dict[str, Any] | None:
    """What is known of the process that trains in `directory`: its `process`, `host`, `command`. None where none does."""
    return holder(directory / LOCK)
