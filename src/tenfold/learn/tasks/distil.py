"""Distillation: a student is trained on the next-token probabilities of a teacher, on text. A run file:

init_from = "student"
tokens = 100000
[task]
name = "distil"
teacher = "generations/g1/model"
[data]
corpus = "stdlib"

The loss is the Kullback-Leibler divergence KL(teacher || student) of each token (arXiv 1503.02531, at temperature 1). The
teacher runs beside the student; with further `teachers` the target is the mean of all probabilities. With `top_k` the likeliest
tokens count each, and all others as one. With `store` these tokens are kept in a folder, and a later student of the same teachers,
text and order reads them instead of running the teachers.
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
from tenfold.learn.tasks.taught import CHUNK, TeacherStore, Top, mean_log_probs, rest
from tenfold.model.io.huggingface import read_model, read_spec, weights_hash
from tenfold.model.io.tokenizer import same_tokenizer
from tenfold.model.llama import Llama
from tenfold.spec.errors import TenfoldError
from tenfold.spec.layout import Layout
from tenfold.spec.model import ModelSpec
from tenfold.spec.ranges import Text
from tenfold.train.config import PretrainingConfig, RunConfig
from tenfold.train.task import Batch, LossSums, Rows
from tenfold.train.tasks.pretrain import HostRows, Pretraining


class DistilConfig(PretrainingConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[task]` of a run that learns from a teacher."""

    name: str = "distil"
    teacher: Annotated[str, Meta(description="The teacher: a Hugging Face directory or a GGUF file.")] = ""
    teachers: Annotated[tuple[str, ...], Meta(description="Further teachers, with the same tokenizer.")] = ()
    top_k: Annotated[
        int, Meta(ge=0, description="Likeliest tokens of the teacher that count each, the rest as one; 0 takes all.")
    ] = 0
    store: Annotated[
        Text | None, Meta(description="A folder that keeps the teachers' top_k likeliest tokens for later students.")
    ] = None
    grid: Annotated[Literal["none", "int8", "int4"], Meta(description="Train for weights on this grid (quantisation-aware).")] = (
        "none"
    )


class Distillation(Pretraining):
    """The task `distil`. It is evaluated like pretraining, by the loss on held-out text."""

    settings_type = DistilConfig
    settings: DistilConfig
    _teachers: list[Llama] | None = None  # read at the first use

    def __init__(self, config: RunConfig, corpus: Corpus | Mixture, home: Path):
        """Raises TenfoldError for a teacher with another tokenizer, or a layout that cuts the logits."""
        super().__init__(config, corpus, home)
        if not self.settings.teacher:
            raise TenfoldError('The table [task] names no teacher: give teacher = "generations/g1/model", or another model.')
        self.paths = [Path(path) for path in (self.settings.teacher, *self.settings.teachers)]
        specs = [self._checked(path) for path in self.paths]
        if isinstance(config.parallel, Layout) and config.parallel.tp * config.parallel.pp * config.parallel.cp > 1:
            raise TenfoldError("Distillation needs whole logits on each process: leave tp, pp and cp out of the table [parallel].")
        self._teacher_flops = sum(spec.forward_flops_per_token(config.data.seq_len) for spec in specs)
        self.store = self._opened_store()

    def _checked(self, path: Path) -> ModelSpec:
        """The shape of a teacher. Raises TenfoldError where its tokenizer or vocab_size does not fit text and student."""
        spec = read_spec(path)
        if not same_tokenizer(path, self.directory):
            raise TenfoldError(
                f"The teacher {path} has another tokenizer than the text {self.directory}: build the text with "
                f"`tenfold data build --tokenizer-from {path}`, and take a student of the same tokenizer."
            )
        if spec.vocab_size != self.spec.vocab_size:
            raise TenfoldError(
                f"The teacher {path} has {spec.vocab_size} logits and the student {self.spec.vocab_size}: take equal ones."
            )
        return spec

    def _opened_store(self) -> TeacherStore | None:
        s = self.settings
        if s.store is None:
            return None
        if not 0 < s.top_k < self.spec.vocab_size:
            raise TenfoldError(f"A store keeps some of {self.spec.vocab_size} tokens only: give top_k in [task], e.g. 64.")
        return TeacherStore.of(Path(s.store), s.top_k, [self.fingerprint(), self.draw])

    def prepare(self, model: nn.Module) -> None:
        super().prepare(model)
        if self.settings.grid != "none":
            train_on_grid(model, self.settings.grid)

    def fingerprint(self) -> dict[str, str]:
        names = ["teacher", *(f"teacher {number}" for number in range(2, len(self.paths) + 1))]
        return super().fingerprint() | {name: weights_hash(path) for name, path in zip(names, self.paths, strict=True)}

    def rows(self, step: int, rows: slice) -> HostRows:
        found = super().rows(step, rows)
        if self.store is None:
            return found
        return self.store.rows(step, rows, found.batch, lambda: self._on(torch.device("cpu")))

    def loss(self, model: Any, batch: Batch) -> LossSums:
        """The reported loss is that of the text, in nats; the gradient is that of the divergence from the teacher."""
        if not torch.is_grad_enabled():
            return super().loss(model, batch)
        ours, counted = model.hidden(batch.tokens, batch.document), batch.targets >= 0
        said = self._said(batch, counted)
        nats, kl = torch.zeros((), device=ours.device), torch.zeros((), device=ours.device)
        for h, target, *theirs in zip(*(t.split(CHUNK) for t in (ours[counted], batch.targets[counted], *said)), strict=True):
            one, other = checkpoint(self._chunk, h, model.head.weight, target, *theirs, use_reentrant=False)
            nats, kl = nats + one, kl + other
        return LossSums(nats, kl - nats)

    @torch.no_grad()
    def _said(self, batch: Batch, counted: Tensor) -> list[Tensor]:
        """The teachers' part of the loss for the `n` tokens that count: the hidden states [n, dim] of each teacher; or from the
        store the likeliest tokens [n, k], their log-probabilities [n, k] and that of the rest [n]."""
        if self.store is not None:
            return [batch.inputs[name][counted[: len(batch.inputs[name])]] for name in Top._fields]
        return [teacher.hidden(batch.tokens, batch.document)[counted] for teacher in self._on(batch.tokens.device)]

    def _chunk(self, h: Tensor, head: Tensor, target: Tensor, *theirs: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over a chunk of tokens: the loss of the text in nats, and the divergence from the teachers."""
        log_q = (h @ head.T).float().log_softmax(-1)
        nats = -log_q.gather(1, target[:, None]).sum()
        if self.store is not None:
            index, log_p, left = theirs
            log_q = log_q.gather(1, index.long())
            return nats, divergence(torch.cat((log_p, left[:, None]), -1), torch.cat((log_q, rest(log_q)), -1))
        teachers = self._on(h.device)
        log_p = mean_log_probs([t @ teacher.head.weight.T for t, teacher in zip(theirs, teachers, strict=True)])
        return nats, divergence(log_p, log_q, self.settings.top_k)

    def _on(self, device: torch.device) -> list[Llama]:
        if self._teachers is None:
            self._teachers = [read_model(path).to(device).eval().requires_grad_(False) for path in self.paths]
        return self._teachers

    def flops(self, rows: Rows) -> float:
        asked = 0.0 if self.store is not None else self._teacher_flops
        return super().flops(rows) + cast(HostRows, rows).batch.tokens.size * asked


def divergence(log_p: Tensor, log_q: Tensor, top_k: int = 0) -> Tensor:
    """The sum over rows of the Kullback-Leibler divergence KL(p || q) in nats, from log-probabilities [rows, vocab].

    With `top_k` the likeliest tokens of p count each, and the rest of both as one token.
    """
    if 0 < top_k < log_p.shape[1]:
        log_p, index = log_p.topk(top_k, -1)
        log_q = log_q.gather(1, index)
        log_p, log_q = (torch.cat((x, rest(x)), -1) for x in (log_p, log_q))
    return (log_p.exp() * (log_p - log_q)).sum()
