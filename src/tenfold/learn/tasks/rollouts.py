"""Prompts with drawn answers, packed in rows, with the columns that their loss needs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tenfold.data.conversations.packing import first_fit, lay
from tenfold.data.text.batches import Batch as TokenRows
from tenfold.learn.sampler import Drawn
from tenfold.train.task import Batch
from tenfold.train.tasks.pretrain import to_device


class UnpaddedBatch(Batch):
    """A batch without padding rows: it has as many rows as the answers need, and one process has them all."""

    def padded(self, rows: int) -> Batch:
        return self


@dataclass(frozen=True)
class DrawnRows:
    """The answers of a step, as `train.task.Rows`.

    `columns` [rows, T] have at each target the number of its `answer`, the `advantage`, and log-probabilities: of the sampler
    (`sampled`), of the trainer's weights that drew it (`old`), and of the `reference`. The sum of the losses is divided by
    `divisor`.
    """

    batch: TokenRows
    columns: dict[str, np.ndarray]
    divisor: float = 1.0

    def __len__(self) -> int:
        return len(self.batch.tokens)

    def weight(self) -> float:
        return self.divisor

    def on(self, device: torch.device, rows: slice) -> Batch:
        own = (self.batch.tokens, self.batch.targets, self.batch.document)
        tokens, targets, document = (to_device(values[rows], device) for values in own)
        return UnpaddedBatch(tokens, targets, document, {k: to_device(v[rows], device) for k, v in self.columns.items()})

    def over(self, divisor: float) -> "DrawnRows":
        """The same rows with another divisor."""
        return replace(self, divisor=divisor)

    def state_dict(self) -> dict[str, Any]:
        """All arrays as JSON values, without loss."""
        arrays = {"tokens": self.batch.tokens, "targets": self.batch.targets, "document": self.batch.document, **self.columns}
        return {"divisor": self.divisor, "arrays": {name: [str(a.dtype), a.tolist()] for name, a in arrays.items()}}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "DrawnRows":
        arrays = {name: np.array(values, dtype) for name, (dtype, values) in state["arrays"].items()}
        batch = TokenRows(*(arrays.pop(name) for name in ("tokens", "targets", "document")))
        return cls(batch, arrays, state["divisor"])


def pack_drawn(answers: Sequence[tuple[list[int], Drawn]], advantages: Sequence[float], seq_len: int, fill: int) -> DrawnRows:
    """Each answer after its prompt, packed in rows of `seq_len` tokens; free places get the token `fill`."""
    whole = [np.array([*prompt, *drawn.tokens], np.int64) for prompt, drawn in answers]
    before = [len(prompt) - 1 for prompt, _ in answers]  # positions without a target
    pieces = [
        (tokens[:-1], np.where(np.arange(len(tokens) - 1) < skip, -100, tokens[1:]))
        for tokens, skip in zip(whole, before, strict=True)
    ]
    packed = first_fit([[len(tokens)] for tokens, _ in pieces], seq_len)
    batch = lay([[pieces[i] for i in row] for row in packed], seq_len, fill)
    columns = {name: np.zeros(batch.tokens.shape, kind) for name, kind in _COLUMNS.items()}
    for r, members in enumerate(packed):
        end = 0
        for i in members:
            start, end = end + before[i], end + len(pieces[i][0])
            columns["answer"][r, start:end], columns["advantage"][r, start:end] = i, advantages[i]
            columns["sampled"][r, start:end] = answers[i][1].log_probs
    return DrawnRows(batch, columns)


_COLUMNS = {"answer": np.int64, "advantage": np.float32, "sampled": np.float32}
