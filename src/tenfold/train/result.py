"""The result of a run, and how to read it from the record of a finished run."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenfold.train.metrics import read_metrics


@dataclass(frozen=True)
class RunResult:
    """The result of a run; without an evaluation (not `finished`), `loss` and `bits_per_byte` are NaN.

    `loss` is in nats per token of the validation text. `seconds` is the time in training steps only, and `tokens_per_s` and `mfu`
    refer to it. `parameters` are the active matrix parameters. `busy_share` is the share of the machine's cores that other
    processes used. `scores` are further metrics that the task evaluated.
    """

    directory: Path
    finished: bool
    step: int
    loss: float
    bits_per_byte: float
    parameters: int
    tokens: int
    flops: float
    seconds: float
    tokens_per_s: float
    mfu: float
    energy_kwh: float
    energy_source: str
    peak_memory_gib: float
    skipped_steps: int
    busy_share: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)


def read_result(directory: Path) -> RunResult | None:
    """The result of the finished run in `directory`, or None if there is none."""
    end = next((row for row in reversed(read_metrics(directory / "run.jsonl")) if row.get("event") == "end"), None)
    if end is None:
        return None
    known: dict[str, Any] = {
        k: math.nan if end[k] is None else end[k] for k in RunResult.__dataclass_fields__ if k in end and k != "directory"
    }
    return RunResult(**known, directory=directory)
