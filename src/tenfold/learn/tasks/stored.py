"""Policy optimization on stored answers, which a server drew earlier, with the log-probabilities of that moment and rewards.

The weights that drew the answers are the behaviour policy. The loss of each token is weighted by the ratio of its probability now
to that when it was drawn, cut at `importance_cap` (truncated importance sampling, arXiv 1802.01561). The cap bounds the variance,
and biases the gradient towards the behaviour policy. `run.jsonl` has the bounds of the ratio before the cap, and the share of
tokens that was cut. A run file:

init_from = "generations/g1/model"
tokens = 20480
[task]
name = "stored_grpo"
[data]
corpus = "stored.jsonl"
seq_len = 512
batch_size = 16                         # answers in a step
[optimizer]
name = "adamw"
"""

from hashlib import sha256
from pathlib import Path
from typing import ClassVar, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from tenfold.data.conversations.tokens import ChatEncoder
from tenfold.data.text.batches import shuffled
from tenfold.learn.options import ImportanceSampling, StoredGRPOConfig
from tenfold.learn.sampler import Drawn
from tenfold.learn.stored import StoredAnswer, advantages, read_stored
from tenfold.learn.tasks.policy import PolicyGradient
from tenfold.learn.tasks.rollouts import DrawnRows
from tenfold.learn.tasks.start import check_rows, model_of
from tenfold.learn.tasks.tally import Tally
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import RunConfig
from tenfold.train.contradictions import refuse
from tenfold.train.resolve import resolve_hyperparameters, resolve_model
from tenfold.train.run import Run
from tenfold.train.run_file import task_settings
from tenfold.train.task import Rows

IDLE = ("num_generations", "num_iterations", "validation_prompts", "epsilon", "epsilon_high")
HELD = 10  # every tenth prompt is held out for the evaluation


class Encoded(NamedTuple):
    """The tokens of a prompt, and its answer with the reward."""

    prompt: list[int]
    answer: StoredAnswer

    @property
    def drawn(self) -> tuple[list[int], Drawn]:
        return self.prompt, Drawn(self.answer.tokens, self.answer.log_probs, True)


class StoredGRPO(PolicyGradient):
    """The task `stored_grpo`. Its evaluation estimates the reward of the model's own answers to the held-out prompts."""

    settings: StoredGRPOConfig
    sampling: ClassVar[ImportanceSampling] = "token_truncate"

    def __init__(self, config: RunConfig, settings: StoredGRPOConfig):
        """Raises TenfoldError for answers that cannot be read, fit no row, or all have the same reward."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            raise TenfoldError("Stored answers are learned on one process: start it without --launch.")
        for key in IDLE:
            refuse(settings, key, "answers are stored, not drawn", "The table [task]")
        self.settings, self.tally = settings, Tally()
        model = model_of(config)
        self.encoder = ChatEncoder.of(model)
        self.vocab_size, self.directory = self.encoder.vocabulary.size, model
        self.spec, tokens = resolve_model(config, self.vocab_size)
        h = resolve_hyperparameters(config, tokens)
        self.answers, self.seed, self.seq_len = h.batch_size, config.seed, config.data.seq_len
        self.train, self.held = self._split(Path(config.data.corpus))
        check_rows(len(self.train), h.steps * self.answers, config.data.max_epochs)
        self.advantages = advantages([tuple(e.prompt) for e in self.train], [e.answer.reward for e in self.train], self.scaled)
        if not any(self.advantages):
            raise TenfoldError(f"All answers to each prompt of {config.data.corpus} are worth the same: there is nothing to learn.")
        self._flops_per_token = self.trained_share * self.spec.train_flops_per_token(self.seq_len)

    @classmethod
    def open(cls, config: RunConfig, home: Path, *, quiet: bool = False) -> "StoredGRPO":
        """The task of a run file. Raises TenfoldError as the constructor does."""
        return cls(config, task_settings(config, StoredGRPOConfig))

    def _split(self, path: Path) -> tuple[list[Encoded], list[Encoded]]:
        """The answers to learn from, and those to every tenth prompt, which are held out."""
        found = [Encoded(self.encoder.prompt(answer.prompt), answer) for answer in read_stored(path)]
        for number, one in enumerate(found, 1):
            if max(one.answer.tokens) >= self.vocab_size:
                raise TenfoldError(
                    f"{path}, row {number} has a token that the model does not know: use answers of one with the same tokenizer."
                )
        fitting = [one for one in found if len(one.prompt) + len(one.answer.tokens) <= self.seq_len + 1]
        numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(tuple(one.prompt) for one in fitting))}
        held = [one for one in fitting if numbers[tuple(one.prompt)] % HELD == HELD - 1]
        train = [one for one in fitting if numbers[tuple(one.prompt)] % HELD != HELD - 1]
        if not held:
            raise TenfoldError(f"{path} has answers to {len(numbers)} prompts within {self.seq_len} tokens: {HELD} are needed.")
        return train, held

    def fingerprint(self) -> dict[str, str]:
        said = {"train": self.train, "held": self.held}
        return super().fingerprint() | {name: sha256(repr(part).encode()).hexdigest()[:16] for name, part in said.items()}

    def rows(self, step: int, rows: slice) -> DrawnRows:
        chosen = shuffled(np.arange(self.answers, dtype=np.int64) + step * self.answers, len(self.train), self.seed)
        packed = self._packed([self.train[i].drawn for i in chosen], [self.advantages[i] for i in chosen])
        return self._add_log_probs(packed, {"reference": self._first})

    def flops(self, rows: Rows) -> float:
        return cast(DrawnRows, rows).batch.tokens.size * self._flops_per_token

    @torch.no_grad()
    def evaluate(self, run: Run) -> dict[str, float]:
        """An off-policy estimate of the mean `reward` of the model's answers to the held-out prompts; `loss` is -`reward`.

        It is self-normalised importance sampling with the ratios of whole answers, cut at the cap. `ess_share` is the effective
        sample size as a share of the answers.
        """
        log_ratios = []
        together = run.evaluation_rows(4)
        for i in range(0, len(self.held), together):
            log_ratios.append(self._log_ratios(run.model, self.held[i : i + together]))
            run.watchdog.beat()
        ratio = torch.cat(log_ratios).exp()
        weight = ratio.clamp(max=self.settings.importance_cap)
        rewards = torch.tensor([one.answer.reward for one in self.held])
        reward = float((weight * rewards).sum() / weight.sum())
        bounds = {"ratio_min": float(ratio.min()), "ratio_max": float(ratio.max())}
        cut = float((ratio > self.settings.importance_cap).float().mean())
        ess = float(weight.sum().square() / weight.square().sum() / len(weight))
        return {"loss": -reward, "reward": reward, "ess_share": ess, "cut_share": cut, **bounds}

    def _log_ratios(self, model: nn.Module, some: list[Encoded]) -> torch.Tensor:
        """The log-ratio of each answer's probability now to that when it was drawn, float32 [answers]."""
        batch = self._packed([one.drawn for one in some], [0.0] * len(some)).on(next(model.parameters()).device, slice(None))
        chosen = batch.targets >= 0
        difference = self._log_probs(model, batch) - batch.inputs["sampled"][chosen]
        return torch.zeros(len(some)).index_add(0, batch.inputs["answer"][chosen].cpu(), difference.cpu())
