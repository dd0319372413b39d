"""Kahneman-Tversky optimization (arXiv 2402.01306): answers rated good become likelier, and the others less likely, relative to the
weights that the run begins with.

The baseline is an estimate of the KL divergence from those weights: the mean log-ratio of mismatched answers (the answer of the
example before, after this example's prompt) over the rows that go through the model together, so leave micro_batch at 0.
A run file:

init_from = "SmolLM2-135M-Instruct"
tokens = 20480
[task]
name = "kto"
[data]
corpus = "rated.jsonl"
seq_len = 512
batch_size = 4
[optimizer]
name = "adamw"
"""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from tenfold.data.conversations.answers import PackedAnswers, pack_rated
from tenfold.data.conversations.preferences import RatedAnswer, read_rated
from tenfold.data.conversations.tokens import ChatEncoder
from tenfold.learn.options import KTOConfig
from tenfold.learn.tasks.compared import ComparedAnswers
from tenfold.learn.tasks.objectives import kto
from tenfold.model.log_probs import document_log_probs
from tenfold.train.config import RunConfig
from tenfold.train.run_file import task_settings
from tenfold.train.task import Batch


class KTO(ComparedAnswers):
    """The task `kto`. Its loss is a mean over answers."""

    settings: KTOConfig
    per_token: ClassVar[float] = 4 / 3  # the mismatched answers need a forward pass only

    @classmethod
    def open(cls, config: RunConfig, home: Path, *, quiet: bool = False) -> "KTO":
        """The task of a run file. Raises TenfoldError where it names no model to begin from, or answers that cannot be read."""
        return cls(config, task_settings(config, KTOConfig), quiet=quiet)

    def read(self, path: Path) -> list[RatedAnswer]:
        return read_rated(path)

    def pack(self, examples: list[RatedAnswer], encoder: ChatEncoder, seq_len: int) -> PackedAnswers:
        return pack_rated(examples, encoder, seq_len)

    def log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        assert batch.document is not None
        most = batch.inputs["reference"].shape[1]
        tokens, targets, document = (batch.inputs[f"other_{name}"] for name in ("tokens", "targets", "document"))
        with torch.no_grad():
            mismatched = document_log_probs(model, tokens, targets, document, most)
        return torch.stack((document_log_probs(model, batch.tokens, batch.targets, batch.document, most), mismatched), -1)

    def losses(self, ratios: Tensor, batch: Batch) -> Tensor:
        own, mismatched = ratios.unbind(-1)
        good, counted, s = batch.inputs["good"], batch.inputs["counted"], self.settings
        self.tally.add("kl", mismatched, counted)
        for name, which in (("reward_good", good), ("reward_bad", ~good)):
            self.tally.add(name, s.beta * own, counted & which)
        return kto(own, good, mismatched[counted], s.beta, (s.good_weight, s.bad_weight))
