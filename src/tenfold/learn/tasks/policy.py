"""What the tasks on rewards share, for drawn and for stored answers: the clipped policy-gradient loss of tokens with advantages."""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.data.conversations.tokens import ChatEncoder
from tenfold.learn.options import GRPOOptions, ImportanceSampling
from tenfold.learn.sampler import Drawn
from tenfold.learn.tasks import objectives
from tenfold.learn.tasks.rollouts import DrawnRows, pack_drawn
from tenfold.learn.tasks.start import TuningTask
from tenfold.learn.tasks.tally import Tally
from tenfold.model.log_probs import target_log_probs
from tenfold.train.task import Batch, LossSums


class PolicyGradient(TuningTask):
    """A task whose rows are `DrawnRows` with `answers` answers in a step. A subclass gives the rows."""

    settings: GRPOOptions
    encoder: ChatEncoder
    tally: Tally
    seq_len: int
    answers: int
    sampling: ClassVar[ImportanceSampling] = "sequence_mask"  # the default of `importance_sampling`

    def prepare(self, model: nn.Module) -> None:
        super().prepare(model)
        self._model: Any = model
        self._first = copy.deepcopy(model).requires_grad_(False) if self.settings.kl_beta else None

    @property
    def correction(self) -> ImportanceSampling:
        """The correction for the difference between sampler and trainer that is in force."""
        return self.settings.importance_sampling or self.sampling

    @property
    def scaled(self) -> bool:
        """Whether advantages are divided by their standard deviation."""
        s = self.settings
        return s.loss_type != "dr_grpo" if s.scale_rewards is None else s.scale_rewards

    def _packed(self, answers: Sequence[tuple[list[int], Drawn]], advantages: Sequence[float]) -> DrawnRows:
        """Prompts with their answers, packed in rows, and the divisor of their loss."""
        s, rows = self.settings, pack_drawn(answers, advantages, self.seq_len, self.encoder.vocabulary.pad or 0)
        return rows.over(objectives.divisor(s.loss_type, rows.batch.target_count, self.answers, s.max_completion_length))

    def _log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        return target_log_probs(model, batch.tokens, batch.targets, batch.document, self.settings.temperature)

    @torch.no_grad()
    def _add_log_probs(self, rows: DrawnRows, models: dict[str, Any]) -> DrawnRows:
        """Add to the rows a column of log-probabilities for each of `models` that is not None; returns the same rows."""
        batch = rows.on(self._model.embedding.weight.device, slice(None))
        for name, model in models.items():
            if model is not None:
                rows.columns[name] = np.zeros_like(rows.columns["sampled"])
                rows.columns[name][rows.batch.targets >= 0] = self._log_probs(model, batch).float().cpu().numpy()
        return rows

    def loss(self, model: nn.Module, batch: Batch) -> LossSums:
        if not len(batch.tokens):
            zero = 0.0 * next(p for p in model.parameters() if p.requires_grad).sum()
            return LossSums(zero, zero)
        s, chosen = self.settings, batch.targets >= 0
        answer, advantage, sampled = (batch.inputs[name][chosen] for name in ("answer", "advantage", "sampled"))
        log_probs = self._log_probs(model, batch)
        old = batch.inputs["old"][chosen] if "old" in batch.inputs else log_probs.detach()
        weight = self._importance(old - sampled, answer)
        ratio, high = (log_probs - old).exp(), s.epsilon if s.epsilon_high is None else s.epsilon_high
        losses = weight * objectives.clipped(ratio, advantage, s.epsilon, high)
        self.tally.add("clip_share", objectives.is_clipped(ratio, advantage, s.epsilon, high).float())
        self.tally.add("sampler_kl", sampled - old)
        if "reference" in batch.inputs:
            kl = objectives.kl_to(batch.inputs["reference"][chosen], log_probs, ratio)
            losses = losses + s.kl_beta * kl
            self.tally.add("kl", kl)
        total = objectives.reduced(losses, answer, self.answers, s.loss_type)
        return LossSums(total, torch.zeros_like(total))

    def _importance(self, log_ratio: Tensor, answer: Tensor) -> Tensor:
        """The importance weight of each token. Recorded: its bounds, those of the uncut ratio, and the share that was cut."""
        mode, cap = self.correction, self.settings.importance_cap
        if mode == "none":
            weight = torch.ones_like(log_ratio)
        else:
            ratio = objectives.ratios(log_ratio, answer, self.answers, mode)
            weight = objectives.importance(ratio, mode, cap)
            self.tally.bound("ratio", ratio)
            self.tally.add("cut_share", (ratio > cap).float())
        self.tally.bound("importance", weight)
        return weight

    def progress(self, step: int) -> dict[str, Any]:
        return self.tally.take()
