"""What is trained. Pretraining, fine-tuning, distillation and ranking are tasks of one trainer.

A task gives the rows of every step, the loss of a model on them, and what a person wants to know of the model. It knows nothing
of processes: `fit` asks for the rows of this process, and adds the sums of all.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from msgspec import Struct
from torch import Tensor, nn


class LossSums(NamedTuple):
    """Sums over the rows of a batch: the loss that is reported, and what training adds to it (z-loss, auxiliary losses)."""

    loss: Tensor
    extra: Tensor


@dataclass(frozen=True)
class Batch:
    """Rows of tokens on a device: `tokens` and `targets` int64 [rows, T], with -100 where nothing is learned.

    `document` int32 [rows, T] numbers the documents of a row that holds several; None where each row is one. `inputs` are
    what else a model takes, by the names of its arguments (`pixels`), or a loss needs, the rows first.
    """

    tokens: Tensor
    targets: Tensor
    document: Tensor | None = None
    inputs: dict[str, Tensor] = field(default_factory=dict)

    def padded(self, rows: int) -> "Batch":
        """The same with rows behind it that count for nothing, `rows` in all: every process runs the same number."""
        missing = rows - len(self.tokens)
        if not missing:
            return self
        tokens, targets = (F.pad(t, (0, 0, 0, missing), value=v) for t, v in ((self.tokens, 0), (self.targets, -100)))
        document = None if self.document is None else F.pad(self.document, (0, 0, 0, missing))
        return replace(self, tokens=tokens, targets=targets, document=document)


class Rows(Protocol):
    """This process's rows of one step, in host memory."""

    def __len__(self) -> int: ...

    def weight(self) -> float:
        """What the loss of these rows is a sum over: targets, pairs, clicks. The loss of a step is divided by that of all rows."""
        ...

    def on(self, device: torch.device, rows: slice) -> Batch:
        """Some of the rows, on the device."""
        ...


class Task(Protocol):
    """`fit` trains any object with these methods; `TaskBase` has those that a simple task need not write.

    `vocab_size` is that of the text; `directory` holds the files of the tokenizer, for the export. `is_remote` says whether rows
    may come from an object store, and are better made ahead of time; `adds_modules` whether `prepare` adds modules to the model.
    `epoch_tokens` are the tokens of rows after which it shows the same again; 0 where it does not say. `settings` is the table
    `[task]`, where the task has settings of its own.
    """

    vocab_size: int
    directory: Path
    is_remote: bool
    adds_modules: bool
    epoch_tokens: int

    @property
    def settings(self) -> Struct | None: ...

    def prepare(self, model: nn.Module) -> None:
        """Give a model what this task trains beside it."""
        ...

    def finish(self, model: nn.Module, directory: Path) -> None:
        """After training: keep in the run's `directory` what `prepare` has added, and leave the model as it is to be written."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """Hashes of all that it learns from and is evaluated on, by name: a run goes on with the same content alone."""
        ...

    def rows(self, step: int, rows: slice) -> Rows:
        """The rows numbered `rows` of a step: a pure function of (seed, step), so that a resumed run sees the same."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> LossSums:
        """Sums over the rows of a batch. In a pipeline the last stage calls it, and stands in for the model."""
        ...

    def evaluate(self, run: Any) -> dict[str, float]:
        """What is known of the model of a `train.run.Run`, with `loss` among it, on all processes alike."""
        ...

    def flops(self, rows: Rows) -> float:
        """Training FLOPs of these rows."""
        ...

    def progress(self, step: int) -> dict[str, Any]:
        """What the record of a step says of the task."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the step, as JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave when the checkpoint was saved."""
        ...


class TaskBase:
    """A task that adds nothing to the model, has its rows at hand, and no state of its own."""

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
