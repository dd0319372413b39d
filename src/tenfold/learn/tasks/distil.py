"""Distillation: a student learns the next token from the probabilities of a teacher, on text.

init_from = "student"
tokens = 100000
[task]
name = "distil"
teacher = "generations/g1/model"
[data]
corpus = "stdlib"

The teacher runs beside the student. With `top_k`, its most likely tokens count each and all others together.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tenfold.data.text.corpus import Corpus
from tenfold.data.text.mixture import Mixture
from tenfold.learn.grid import train_on_grid
from tenfold.model.io.huggingface import read_model, read_spec, weights_hash
from tenfold.model.io.tokenizer import same_tokenizer
from tenfold.model.llama import Llama
from tenfold.spec.errors import TenfoldError
from tenfold.spec.layout import Layout
from tenfold.spec.ranges import Share
from tenfold.train.config import PretrainingConfig, RunConfig
from tenfold.train.task import Batch, LossSums, Rows
from tenfold.train.tasks.pretrain import HostRows, Pretraining

_CHUNK = 1024  # tokens whose logits are in memory at once


class DistilConfig(PretrainingConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[task]` of a run that learns from a teacher."""

    name: str = "distil"
    teacher: Annotated[str, Meta(description="The teacher: a Hugging Face directory or a GGUF file.")] = ""
    top_k: Annotated[int, Meta(ge=0, description="Tokens of the teacher that count each; 0 takes all.")] = 0
    text_share: Annotated[Share, Meta(description="Share of the loss that is the text's own next token.")] = 0.0
    grid: Annotated[Literal["none", "int8", "int4"], Meta(description="Train for weights on this grid (QAT).")] = "none"


class Distillation(Pretraining):
    """The task; it is evaluated as pretraining is, on the text itself."""

    settings_type = DistilConfig
    settings: DistilConfig
    _teacher: Llama | None = None  # read when it is first asked

    def __init__(self, config: RunConfig, corpus: Corpus | Mixture, home: Path):
        """Raises TenfoldError for a teacher with another tokenizer, or a layout that cuts the logits."""
        super().__init__(config, corpus, home)
        if not self.settings.teacher:
            raise TenfoldError('The table [task] names no teacher: give teacher = "generations/g1/model", or another model.')
        path = Path(self.settings.teacher)
        spec = read_spec(path)
        if not same_tokenizer(path, corpus.directory):
            raise TenfoldError(
                f"The teacher {path} has another tokenizer than the text {corpus.directory}: build the text with "
                f"`tenfold data build --tokenizer-from {path}`, and take a student of the same tokenizer."
            )
        if spec.vocab_size != self.spec.vocab_size:
            raise TenfoldError(
                f"The teacher {path} has {spec.vocab_size} logits and the student {self.spec.vocab_size}: take one alike."
            )
        if isinstance(config.parallel, Layout) and config.parallel.tp * config.parallel.pp * config.parallel.cp > 1:
            raise TenfoldError("Distillation needs whole logits: leave tp, pp and cp of the table [parallel] out.")
        self.path = path
        self._teacher_flops = spec.forward_flops_per_token(config.data.seq_len)

    def prepare(self, model: nn.Module) -> None:
        super().prepare(model)
        if self.settings.grid != "none":
            train_on_grid(model, self.settings.grid)

    def fingerprint(self) -> dict[str, str]:
        return super().fingerprint() | {"teacher": weights_hash(self.path)}

    def loss(self, model: Any, batch: Batch) -> LossSums:
        """The nats of the text, which are reported; the divergence from the teacher is what is learned."""
        if not torch.is_grad_enabled():
            return super().loss(model, batch)
        with torch.no_grad():
            teacher = self._on(batch.tokens.device)
            theirs = teacher.hidden(batch.tokens, batch.document)
        ours, counted = model.hidden(batch.tokens, batch.document), batch.targets >= 0
        nats, kl = torch.zeros((), device=ours.device), torch.zeros((), device=ours.device)
        parts = (t.split(_CHUNK) for t in (ours[counted], theirs[counted], batch.targets[counted]))
        for h, t, target in zip(*parts, strict=True):
            one, other = checkpoint(self._chunk, h, model.head.weight, t, teacher.head.weight, target, use_reentrant=False)
            nats, kl = nats + one, kl + other
        share = self.settings.text_share
        return LossSums(nats, (1 - share) * (kl - nats))

    def _chunk(self, h: Tensor, head: Tensor, t: Tensor, their_head: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over tokens: nats of the text, and divergence from the teacher."""
        log_q = (h @ head.T).float().log_softmax(-1)
        nats = -log_q.gather(1, target[:, None]).sum()
        log_p = (t @ their_head.T).float().log_softmax(-1)
        return nats, divergence(log_p, log_q, self.settings.top_k)

    def _on(self, device: torch.device) -> Llama:
        if self._teacher is None:
            self._teacher = read_model(self.path).to(device).eval().requires_grad_(False)
        return self._teacher

    def flops(self, rows: Rows) -> float:
        return super().flops(rows) + cast(HostRows, rows).batch.tokens.size * self._teacher_flops


def divergence(log_p: Tensor, log_q: Tensor, top_k: int = 0) -> Tensor:
    """The sum over rows of the Kullback-Leibler divergence of q from p, given as log-probabilities [rows, vocab].

    With `top_k` the most likely tokens of p count each, and the rest of both as one token.
    """
    if 0 < top_k < log_p.shape[1]:
        log_p, index = log_p.topk(top_k, -1)
        log_q = log_q.gather(1, index)
        log_p, log_q = (torch.cat((x, _rest(x)), -1) for x in (log_p, log_q))
    return (log_p.exp() * (log_p - log_q)).sum()


def _rest(log_probs: Tensor) -> Tensor:
    """The logarithm of the mass that is left [rows, 1]."""
    return torch.log1p(-log_probs.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
