"""Supervised fine-tuning: a model is trained on the answers of chats, in its own chat template. A run file:

init_from = "SmolLM2-135M-Instruct"
tokens = 10240
[task]
name = "sft"
[data]
corpus = "chats.jsonl"
batch_size = 4
"""

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from tenfold.data.conversations.chats import read_chats
from tenfold.data.conversations.packing import PackedChats, pack
from tenfold.data.conversations.tokens import ChatEncoder
from tenfold.learn.options import SFTConfig
from tenfold.learn.tasks.start import TuningTask, check_rows, model_of
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import RunConfig
from tenfold.train.resolve import resolve_hyperparameters, resolve_model
from tenfold.train.run import Run
from tenfold.train.run_file import task_settings
from tenfold.train.task import Batch, LossSums, Rows
from tenfold.train.tasks.pretrain import HostRows


class SFT(TuningTask):
    """The task `sft`. `directory` is that of the model that the run begins with, whose tokenizer the export keeps."""

    def __init__(self, config: RunConfig, chats: tuple[PackedChats, PackedChats], encoder: ChatEncoder):
        """Raises TenfoldError where the chats would be read more often than `max_epochs`."""
        self.train, self.validation = train, _ = chats
        self.settings = task_settings(config, SFTConfig)
        self.vocab_size, self.directory = encoder.vocabulary.size, Path(config.init_from or "")
        self.spec, tokens = resolve_model(config, self.vocab_size)
        h = resolve_hyperparameters(config, tokens)
        self.draw = {"batch_size": h.batch_size, "seed": config.seed}
        self._flops_per_token = self.trained_share * self.spec.train_flops_per_token(config.data.seq_len)
        check_rows(len(train), h.steps * h.batch_size, config.data.max_epochs)
        stops = np.isin(train.rows.targets, sorted(encoder.vocabulary.stop_tokens)).sum()
        if stops != train.answers:
            raise TenfoldError(
                f"{train.answers} whole answers have {stops} stop tokens to learn: check that the chat template ends each with one."
            )

    @classmethod
    def open(cls, config: RunConfig, home: Path, *, quiet: bool = False) -> "SFT":
        """The task of a run file. Raises TenfoldError where it names no model to begin from, or chats that cannot be read."""
        settings = task_settings(config, SFTConfig)
        encoder, seq_len = ChatEncoder.of(model_of(config)), config.data.seq_len
        chats, held = read_chats(Path(config.data.corpus)), []
        if settings.validation is None:
            chats, held = [c for i, c in enumerate(chats) if i % 10], chats[::10]
        else:
            held = read_chats(Path(settings.validation))
        fill = encoder.vocabulary.pad or 0
        train, validation = (pack([encoder.encode(chat) for chat in part], seq_len, fill) for part in (chats, held))
        return cls(config, (train, validation), encoder)

    def fingerprint(self) -> dict[str, str]:
        return super().fingerprint() | {"train": self.train.fingerprint, "validation": self.validation.fingerprint}

    def rows(self, step: int, rows: slice) -> HostRows:
        return HostRows(self.train.batch(step, rows, **self.draw))

    def loss(self, model: nn.Module, batch: Batch) -> LossSums:
        return LossSums(*cast(Any, model).loss(batch.tokens, batch.targets, batch.document))

    def flops(self, rows: Rows) -> float:
        return cast(HostRows, rows).batch.tokens.size * self._flops_per_token

    def progress(self, step: int) -> dict[str, Any]:
        return {"epochs": step * self.draw["batch_size"] / len(self.train)}

    @torch.no_grad()
    def evaluate(self, run: Run) -> dict[str, float]:
        """`loss` in nats per learned token of the validation chats, and `bits_per_byte` of their answers."""
        nats, count = 0.0, 0
        for batch in self.validation.batches(run.evaluation_rows(), (run.dims.data_rank, run.dims.data)):
            nats += run.loss_of(HostRows(batch).on(run.device, slice(None)))
            count += batch.target_count
            run.watchdog.beat()
        nats, count = run.dims.total(nats)[0], int(run.dims.total_of_rows(count)[0])
        return {"loss": nats / max(1, count), "bits_per_byte": nats / math.log(2) / max(1, self.validation.answer_bytes)}
