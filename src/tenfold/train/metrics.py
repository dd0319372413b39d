"""Metrics as JSON lines, and to TensorBoard or Weights & Biases where asked for."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tenfold.spec.errors import TenfoldError


class MetricsWriter:
    """Appends events to `directory/run.jsonl`, one JSON object a line, each with `event` and `time` (Unix seconds).

    On resume, lines past `resume_step` are dropped, so that the file reads as one run.
    """

    def __init__(self, directory: Path, *, tensorboard: bool = False, wandb_project: str | None = None, resume_step=0):
        path = directory / "run.jsonl"
        kept = [row for row in read_metrics(path) if row.get("step", 0) <= resume_step] if resume_step else []
        self._file = path.open("w")
        for row in kept:
            self._file.write(json.dumps(row) + "\n")
        self._board = _tensorboard(directory) if tensorboard else None
        self._wandb = _wandb(wandb_project, directory) if wandb_project else None

    def write(self, event: str, **fields: Any) -> None:
        self._file.write(json.dumps({"event": event, "time": round(time.time(), 3), **fields}, default=str) + "\n")
        self._file.flush()
        numbers = {k: v for k, v in fields.items() if isinstance(v, int | float) and k != "step"}
        if "step" in fields and self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(f"{event}/{name}", value, fields["step"])
        if "step" in fields and self._wandb is not None:
            self._wandb.log({f"{event}/{k}": v for k, v in numbers.items()}, step=fields["step"])

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All events of a `run.jsonl`; a line torn by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _tensorboard(directory: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise TenfoldError("TensorBoard is not installed: pip install 'tenfold[tensorboard]'.") from None
    return SummaryWriter(directory / "tensorboard")


def _wandb(project: str, directory: Path) -> Any:
    try:
        import wandb
    except ImportError:
        raise TenfoldError("Weights & Biases is not installed: pip install 'tenfold[wandb]'.") from None
    return wandb.init(project=project, dir=directory, name=directory.name, resume="allow")
