"""The lock of a run's directory, which tells who trains in it."""

from pathlib import Path
from typing import Any

from tenfold.spec.files import holder

LOCK = ".training.lock"  # held by the first process of the run


def trainer(directory: Path) -> dict[str, Any] | None:
    """The `process` id, `host` and `command` of the process that trains in `directory`; None if none does."""
    return holder(directory / LOCK)
