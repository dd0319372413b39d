"""What a run came to, and how it is read from the record of a finished one."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenfold.train.metrics import read_metrics


@dataclass(frozen=True)
class RunResult:
    """`loss` is in nats per token of the validation text, `seconds` is training alone, `scores` what else was evaluated.

    `busy_share` is the part of the machine's cores that other processes used.
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
    """The result of a finished run in `directory`, or None."""
    end = next((row for row in reversed(read_metrics(directory / "run.jsonl")) if row.get("event") == "end"), None)
    if end is None:
        return None
    known: dict[str, Any] = {
        k: math.nan if end[k] is None else end[k] for k in RunResult.__dataclass_fields__ if k in end and k != "directory"
    }
    return RunResult(**known, directory=directory)
