"""Forecast of the loss along a generation's last run, from the records (`run.jsonl`) of the runs before it.

A record has the training loss of batches in nats per token; the law is of validation loss, in bits per byte for text. The ratio of
the two units is a constant of the text, found from the end of every record, which has the validation loss in both.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tenfold.scale import documents
from tenfold.scale.generations import parent_of
from tenfold.scale.law import Law
from tenfold.scale.trajectory import FEWEST, MOMENTS, Curve, moments
from tenfold.train.metrics import read_metrics
from tenfold.train.result import read_result

PARTS = 20  # equal parts of a run, over each of which the losses of the batches are averaged


def write_trajectory(generation: Path, law: Law, params: int, tokens: int) -> None:
    """Write `trajectory.json` for a run of `params` and `tokens`, unless too few runs are on record."""
    found = [one for one in map(read_curve, _runs_before(generation)) if one is not None]
    if len(found) < FEWEST:
        return
    unit = float(np.median([per_nat for _, per_nat in found]))
    along = moments(law, [curve for curve, _ in found], params, tokens, unit)
    document = {"params": params, "tokens": tokens, "moments": [asdict(moment) for moment in along]}
    documents.write(generation / documents.TRAJECTORY, document)


def read_curve(directory: Path) -> tuple[Curve, float] | None:
    """The training loss along a finished run, with its final validation loss as `known`, both in nats per token; and one nat per
    token in the law's unit.

    None for a run that has not finished, or without a step on record in its first tenth.
    """
    result = read_result(directory)
    rows = [row for row in read_metrics(directory / "run.jsonl") if row.get("event") == "step" and row["loss"] is not None]
    if result is None or not rows or rows[0]["tokens"] > MOMENTS[0] * result.tokens:
        return None
    tokens, loss = (np.array([row[name] for row in rows], dtype=float) for name in ("tokens", "loss"))
    part = np.minimum(PARTS * tokens // result.tokens, PARTS - 1)
    means = [(tokens[part == one].mean(), loss[part == one].mean()) for one in np.unique(part)]
    x, y = np.array([*means, (tokens[-1], means[-1][1])]).T
    per_nat = 1.0 if math.isnan(result.bits_per_byte) else result.bits_per_byte / result.loss
    return Curve(str(directory), result.parameters, x, y, result.loss), per_nat


def _runs_before(generation: Path) -> Iterator[Path]:
    """The directories of the ladder's runs, and of the runs of the generations that this one climbed on from."""
    folder: Path | None = generation
    while folder is not None:
        yield from (path.parent for path in sorted(folder.glob("ladder/*/run.jsonl")))
        parent = parent_of(folder)
        folder = folder.parent / parent if parent else None
        if folder is not None:
            yield folder
