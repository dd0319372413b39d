"""Tasks define what the trainer trains: pretraining, fine-tuning, distillation and ranking are tasks of the same trainer.

A task gives the rows of every step, the loss of a model on them, and the metrics of an evaluation. It does not handle several
processes: `fit` asks it for the rows of one process, and sums losses over all processes.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from msgspec import Struct
from torch import Tensor, nn


class LossSums(NamedTuple):
    """Sums over the rows of a batch: the loss that is reported, and the additional training losses (z-loss, auxiliary losses)."""

    loss: Tensor
    extra: Tensor


@dataclass(frozen=True)
class Batch:
    """Rows of tokens on a device: `tokens` and `targets` int64 [rows, T]; a target of -100 is ignored.

    `document` int32 [rows, T] numbers the documents in each row; it is None if every row is one document. `inputs` are further
    arguments of the model by name (such as `pixels`), or further tensors that the loss needs, with rows as the first dimension.
    """

    tokens: Tensor
    targets: Tensor
    document: Tensor | None = None
    inputs: dict[str, Tensor] = field(default_factory=dict)

    def padded(self, rows: int) -> "Batch":
        """The batch padded to `rows` rows, whose targets are ignored, so that every process runs the same number of rows."""
        missing = rows - len(self.tokens)
        if not missing:
            return self
        tokens, targets = (F.pad(t, (0, 0, 0, missing), value=v) for t, v in ((self.tokens, 0), (self.targets, -100)))
        document = None if self.document is None else F.pad(self.document, (0, 0, 0, missing))
        return replace(self, tokens=tokens, targets=targets, document=document)


class Rows(Protocol):
    """One process's rows of one step, in host memory."""

    def __len__(self) -> int: ...

    def weight(self) -> float:
        """The number of terms in the summed loss of these rows: targets, pairs, clicks. The loss of a step is divided by the total
        over all processes."""
        ...

    def on(self, device: torch.device, rows: slice) -> Batch:
        """Some of the rows, on the device."""
        ...


class Task(Protocol):
    """The interface of a task. `fit` trains any object with these members; `TaskBase` implements those that a simple task need not.

    `vocab_size` is the vocabulary size of the text. `directory` holds the tokenizer's files, which are exported with the model.
    `is_remote`: rows may come from an object store, so they are prefetched. `adds_modules`: `prepare` adds modules to the model.
    `epoch_tokens` is the number of tokens after which the data repeats, or 0 if it is unknown. `settings` is the table `[task]` as
    the task's own struct, or None if the task has no settings.
    """

    vocab_size: int
    directory: Path
    is_remote: bool
    adds_modules: bool
    epoch_tokens: int

    @property
    def settings(self) -> Struct | None: ...

    def prepare(self, model: nn.Module) -> None:
        """Add to a new model what this task trains with it, such as further heads or adapters."""
        ...

    def finish(self, model: nn.Module, directory: Path) -> None:
        """After training, save what `prepare` added to the run's `directory`, and turn the model into the one to export."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """Hashes, by name, of all data for training and evaluation; a run is only resumed with the same data."""
        ...

    def rows(self, step: int, rows: slice) -> Rows:
        """The rows numbered `rows` of a step: a pure function of (seed, step), so that a resumed run sees the same data."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> LossSums:
        """The summed losses of a batch. In a pipeline, `model` is the last stage, which has the same `loss` and `hidden`."""
        ...

    def evaluate(self, run: Any) -> dict[str, float]:
        """The metrics of the model of `run`, a `train.run.Run`, among them `loss`; the same on all processes."""
        ...

    def flops(self, rows: Rows) -> float:
        """Training FLOPs of these rows."""
        ...

    def progress(self, step: int) -> dict[str, Any]:
        """Fields that the task adds to the event of a step in `run.jsonl`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state of the task that a resumed run needs besides the step, as JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned when the checkpoint was saved."""
        ...


class TaskBase:
    """Defaults for a task that adds nothing to the model, has its data on this machine, and has no state."""

    is_remote = False
    adds_modules = False
    epoch_tokens = 0
    settings: Struct | None = None

    def prepare(self, model: nn.Module) -> None:
        pass

    def finish(self, model: nn.Module, directory: Path) -> None:
        pass

    def fingerprint(self) -> dict[str, str]:
        return {}

    def progress(self, step: int) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
