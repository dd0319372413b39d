"""What DPO and KTO share: packed answers, their log-ratios to the reference model, and a loss for each example."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.data.conversations.answers import PackedAnswers
from tenfold.data.conversations.tokens import ChatEncoder
from tenfold.data.text.batches import share_of, shuffled
from tenfold.learn.tasks.reference import ReferenceModel
from tenfold.learn.tasks.start import TuningTask, check_rows, model_of
from tenfold.learn.tasks.tally import Tally
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import RunConfig
from tenfold.train.parallel.processes import on_first_process_then_all
from tenfold.train.resolve import resolve_hyperparameters, resolve_model
from tenfold.train.run import Run
from tenfold.train.start import layout_of
from tenfold.train.task import Batch, LossSums, Rows
from tenfold.train.tasks.pretrain import to_device

EVALUATION_ROWS = 4  # at most, that go through the model together: each has two answers and their logits


@dataclass(frozen=True)
class AnswerRows:
    """Packed answers in host memory, as `train.task.Rows`.

    `reference` has the log-probabilities under the reference model, float32 [examples, 2]. `counted` bool [rows, most] says which
    examples of a row (`most` is the largest number of examples in one) are part of the loss.
    """

    packed: PackedAnswers
    reference: np.ndarray
    counted: np.ndarray

    def __len__(self) -> int:
        return len(self.packed)

    def weight(self) -> float:
        return float(self.counted.sum())

    def on(self, device: torch.device, rows: slice) -> Batch:
        packed, members = self.packed, self.packed.members[rows]
        inputs = {
            "reference": self.reference[members], "lengths": packed.lengths[members], "good": packed.good[members],
            "counted": self.counted[rows],
        }  # fmt: skip
        if packed.mismatched is not None:
            other = packed.mismatched[rows]
            inputs |= {"other_tokens": other.tokens, "other_targets": other.targets, "other_document": other.document}
        own = (packed.rows.tokens, packed.rows.targets, packed.rows.document)
        tokens, targets, document = (to_device(values[rows], device) for values in own)
        moved = {name: to_device(np.ascontiguousarray(values), device) for name, values in inputs.items()}
        return Batch(tokens, targets, document, moved)


class ComparedAnswers(TuningTask):
    """A task on answers that were compared or rated. A subclass implements `read`, `pack`, `log_probs` and `losses`."""

    per_token: ClassVar[float] = 1.0  # training FLOPs of a token, as a multiple of those in pretraining

    def __init__(self, config: RunConfig, settings: Any, *, quiet: bool = False):
        """Raises TenfoldError where the answers cannot be read, or would be read more often than `max_epochs`."""
        self.settings, self.tally = settings, Tally()
        model = model_of(config)
        layout = layout_of(config)
        if layout.pp * layout.tp * layout.cp != 1:
            raise TenfoldError(
                "The log-probability of an answer needs whole rows on one process: set pp, cp and tp to 1 in [parallel]."
            )
        encoder = ChatEncoder.of(model)
        self.vocab_size, self.directory = encoder.vocabulary.size, model
        files = Path(config.data.corpus), None if settings.validation is None else Path(settings.validation)
        examples = self.read(files[0])
        held = examples[::10] if files[1] is None else self.read(files[1])
        train = [e for i, e in enumerate(examples) if i % 10] if files[1] is None else examples
        seq_len = config.data.seq_len
        self.train, self.validation = self.pack(train, encoder, seq_len), self.pack(held, encoder, seq_len)
        self.spec, tokens = resolve_model(config, self.vocab_size)
        h = resolve_hyperparameters(config, tokens)
        self.batch_size, self.seed = h.batch_size, config.seed
        check_rows(len(self.train), h.steps * h.batch_size, config.data.max_epochs)
        self._flops_per_token = self.per_token * self.trained_share * self.spec.train_flops_per_token(seq_len)
        self._reference = on_first_process_then_all(lambda: self._columns(config, (files[0], files[1] or files[0]), quiet))

    def _columns(self, config: RunConfig, files: tuple[Path, Path], quiet: bool) -> tuple[np.ndarray, np.ndarray]:
        reference = ReferenceModel(config, self.vocab_size, self.settings, quiet)

        def log_probs(model: nn.Module, packed: PackedAnswers, device: torch.device) -> Tensor:
            return self.log_probs(model, self._rows(packed, None).on(device, slice(None)))

        return reference.columns(files[0], self.train, log_probs), reference.columns(files[1], self.validation, log_probs)

    def read(self, path: Path) -> list[Any]:
        """The examples of a file."""
        raise NotImplementedError

    def pack(self, examples: list[Any], encoder: ChatEncoder, seq_len: int) -> PackedAnswers:
        """The examples, packed in rows of `seq_len` tokens."""
        raise NotImplementedError

    def log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probabilities of both answers of each example, float32 [rows, most, 2]."""
        raise NotImplementedError

    def losses(self, ratios: Tensor, batch: Batch) -> Tensor:
        """The loss of each example, [rows, most], from the log-ratios [rows, most, 2] of both answers to the reference."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, str]:
        return super().fingerprint() | {"train": self.train.fingerprint, "validation": self.validation.fingerprint}

    def rows(self, step: int, rows: slice) -> AnswerRows:
        sample = np.arange(self.batch_size, dtype=np.int64)[rows] + step * self.batch_size
        return self._rows(self.train.take(shuffled(sample, len(self.train), self.seed)), self._reference[0])

    def _rows(self, packed: PackedAnswers, reference: np.ndarray | None) -> AnswerRows:
        columns = np.zeros((packed.examples, 2), np.float32) if reference is None else reference
        return AnswerRows(packed, columns, packed.members >= 0)

    def loss(self, model: nn.Module, batch: Batch) -> LossSums:
        batch = _with_all_rows(batch)
        ratios = self.log_probs(model, batch) - batch.inputs["reference"]
        losses = self.losses(ratios, batch)
        total = torch.where(batch.inputs["counted"], losses, 0.0).sum()
        return LossSums(total, torch.zeros_like(total))

    def flops(self, rows: Rows) -> float:
        return cast(AnswerRows, rows).packed.rows.tokens.size * self._flops_per_token

    def progress(self, step: int) -> dict[str, Any]:
        return {"epochs": step * self.batch_size / len(self.train), **self.tally.take()}

    @torch.no_grad()
    def evaluate(self, run: Run) -> dict[str, float]:
        """The mean `loss` of a validation example, and the means that the record of a step has, too."""
        self.tally.take()
        mine, own = share_of(len(self.validation), (run.dims.data_rank, run.dims.data))
        total, count = 0.0, 0.0
        together = run.evaluation_rows(EVALUATION_ROWS)
        for start in range(0, len(mine), together):
            some = slice(start, start + together)
            packed = self.validation.take(mine[some])
            rows = AnswerRows(packed, self._reference[1], (packed.members >= 0) & own[some, None])
            total += run.loss_of(rows.on(run.device, slice(None)))
            count += rows.weight()
            run.watchdog.beat()
        (total,), (count,) = run.dims.total(total), run.dims.total_of_rows(count)
        return {"loss": total / max(1, count), **self.tally.take(run.dims)}


def _with_all_rows(batch: Batch) -> Batch:
    """The batch with inputs for the padding rows, too (`Batch.padded` adds those to the tokens alone)."""
    missing = len(batch.tokens) - len(batch.inputs["counted"])
    if not missing:
        return batch
    inputs = {name: F.pad(t, (0, 0) * (t.ndim - 1) + (0, missing)) for name, t in batch.inputs.items()}
    return Batch(batch.tokens, batch.targets, batch.document, inputs)
