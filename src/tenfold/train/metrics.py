"""Write metrics as JSON lines, and optionally to TensorBoard or Weights & Biases."""

import math
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tenfold.spec.errors import NotInstalled
from tenfold.spec.files import append_line, atomic_file, read_lines, write_text
from tenfold.spec.strict_json import strict_json
from tenfold.spec.versions import require_version
from tenfold.train.config import VERSION


class MetricsWriter:
    """Appends events to `directory/run.jsonl`, one JSON object per line, each with `event` and `time` (Unix seconds).

    Without `resume_step`, an existing file is emptied. With it, events after that step, and the event "end", are removed, so that
    the file reads as one run. Numbers that are not finite are written as null, because JSON has no such numbers.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tensorboard: bool = False,
        wandb_project: str | None = None,
        resume_step: int | None = None,
    ):
        self._path = directory / "run.jsonl"
        kept = [] if resume_step is None else read_metrics(self._path)
        kept = [row for row in kept if (row.get("step") or 0) <= (resume_step or 0) and row.get("event") != "end"]
        with atomic_file(self._path) as scratch:
            scratch.write_text("".join(strict_json(row) + "\n" for row in kept))
        self._board = _tensorboard(directory, resume_step) if tensorboard else None
        self._wandb = _wandb(wandb_project, directory) if wandb_project else None

    def write(self, event: str, **fields: Any) -> None:
        """Append one event. If `step` is among the fields, its numbers also go to TensorBoard and Weights & Biases.

        Raises TenfoldError if the disk is full.
        """
        append_line(self._path, {"event": event, "time": round(time.time(), 3), **fields})
        if "step" not in fields:
            return
        numbers = {f"{event}/{k}": v for k, v in fields.items() if isinstance(v, int | float) and math.isfinite(v) and k != "step"}
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, fields["step"])
        if self._wandb is not None:
            self._wandb.log(numbers, step=fields["step"])

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All events of a `run.jsonl`, except an incomplete last line. Raises TenfoldError if a later version of Tenfold wrote it."""
    rows = read_lines(path)
    for row in rows:
        if row.get("event") == "start":
            require_version(row.get("version", 1), (1, VERSION), path, "train again")
    return rows


def _tensorboard(directory: Path, resume_step: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise NotInstalled("TensorBoard is not installed: pip install 'tenfold[tensorboard]'.") from None
    return SummaryWriter(directory / "tensorboard", purge_step=None if resume_step is None else resume_step + 1)


def _wandb(project: str, directory: Path) -> Any:
    try:
        import wandb
    except ImportError:
        raise NotInstalled("Weights & Biases is not installed: pip install 'tenfold[wandb]'.") from None
    name = directory / "wandb-id"  # so that a resumed run continues the same run there
    if not name.exists():
        write_text(name, os.urandom(4).hex())
    return wandb.init(project=project, dir=directory, name=directory.name, id=name.read_text().strip(), resume="allow")
