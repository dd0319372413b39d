"""Find the task that a run file names, among the entry points `tenfold.tasks`."""

from pathlib import Path

from tenfold.spec.plugins import load
from tenfold.train.config import RunConfig
from tenfold.train.resolve import check_settings
from tenfold.train.task import Task


def open_task(config: RunConfig, home: Path, *, quiet: bool = False) -> Task:
    """The task of the table `[task]`, with its data in `home`. Raises TenfoldError for an unknown task or missing data."""
    check_settings(config)
    return load("tasks", config.task.get("name", "pretrain")).open(config, home, quiet=quiet)
