"""The mean of several teachers' probabilities, and a store on disk of its likeliest tokens for later students."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from tenfold.data.text.batches import Batch as TokenRows
from tenfold.model.llama import Llama
from tenfold.spec.files import atomic_file, make_folder
from tenfold.train.task import Batch
from tenfold.train.tasks.pretrain import HostRows, to_device

CHUNK = 1024  # tokens whose logits are in memory at once


def mean_log_probs(logits: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean of the teachers' probabilities [n, vocab], from the logits [n, vocab] of each."""
    each = [one.float().log_softmax(-1) for one in logits]
    return each[0] if len(each) == 1 else torch.stack(each).logsumexp(0) - float(np.log(len(each)))


def rest(log_probs: Tensor) -> Tensor:
    """The logarithm of the probability that the given tokens [rows, k] leave to all others, [rows, 1]."""
    return torch.log1p(-log_probs.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))


class Top(NamedTuple):
    """The likeliest `tokens` int32 [rows, T, k], their `log_probs` [rows, T, k], and that of all others, `rest` [rows, T]."""

    tokens: np.ndarray
    log_probs: np.ndarray
    rest: np.ndarray


@dataclass(frozen=True)
class TaughtRows(HostRows):
    """Rows of text with the teachers' likeliest tokens at each position."""

    top: Top

    def on(self, device: torch.device, rows: slice) -> Batch:
        batch = super().on(device, rows)
        batch.inputs.update({name: to_device(values[rows], device) for name, values in self.top._asdict().items()})
        return batch


@dataclass(frozen=True)
class TeacherStore:
    """The teachers' `k` likeliest tokens, one file for each step; teachers, text, order and `k` determine the folder."""

    folder: Path
    k: int

    @classmethod
    def of(cls, root: Path, k: int, said: object) -> "TeacherStore":
        """The store in `root` for `k` and `said`: all that the rows and the teachers depend on, as JSON values."""
        return cls(root / hashlib.sha256(json.dumps([k, said], sort_keys=True).encode()).hexdigest()[:16], k)

    def rows(self, step: int, rows: slice, batch: TokenRows, teachers: Callable[[], Sequence[Llama]]) -> TaughtRows:
        """The rows of a step, from their file; where that is missing or damaged, from the teachers, and the file is written."""
        file = self.folder / f"step-{step:07d}-{rows.start or 0}-{len(batch.tokens)}.safetensors"
        try:
            stored = load_file(file)
        except (OSError, SafetensorError):
            stored = self._ask(batch, teachers())._asdict()
            make_folder(self.folder)
            with atomic_file(file) as scratch:
                save_file({name: np.ascontiguousarray(values) for name, values in stored.items()}, scratch)
        return TaughtRows(batch, Top(stored["tokens"], stored["log_probs"].astype(np.float32), stored["rest"]))

    @torch.no_grad()
    def _ask(self, batch: TokenRows, teachers: Sequence[Llama]) -> Top:
        given = HostRows(batch).on(teachers[0].embedding.weight.device, slice(None))
        hidden = [teacher.hidden(given.tokens, given.document).flatten(0, 1) for teacher in teachers]
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for some in zip(*(h.split(CHUNK) for h in hidden), strict=True):
            log_p = mean_log_probs([h @ teacher.head.weight.T for h, teacher in zip(some, teachers, strict=True)])
            values, index = log_p.topk(self.k, -1)
            parts.append((index.int(), values.half(), rest(values)[:, 0]))
        index, values, left = (torch.cat(part).cpu().unflatten(0, batch.tokens.shape).numpy() for part in zip(*parts, strict=True))
        return Top(index, values, left)
