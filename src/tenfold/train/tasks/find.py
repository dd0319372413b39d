"""The task that a run file names, among the entry points of `tenfold.tasks`."""

from pathlib import Path

from tenfold.spec.plugins import load
from tenfold.train.config import RunConfig
from tenfold.train.resolve import check_settings
from tenfold.train.task import Task


def open_task(config: RunConfig, home: Path, *, quiet: bool = False) -> Task:
    """The task of `[task]`, with its data in `home`. Raises TenfoldError for a task or data that is not there."""
    check_settings(config)
    return load("tasks", config.task.get("name", "pretrain")).open(config, home, quiet=quiet)
