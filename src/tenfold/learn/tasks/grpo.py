"""Group relative policy optimization (arXiv 2402.03300): the model answers prompts, functions reward the answers, and answers
become likelier the better they are than the others to the same prompt. A run file:

init_from = "SmolLM2-135M-Instruct"
tokens = 655360
[task]
name = "grpo"
rewards = "arithmetic.py"
[data]
corpus = "prompts.jsonl"                # or the file of rewards, where that has prompts
seq_len = 128
batch_size = 64                         # answers in a step
[optimizer]
name = "adamw"
"""

from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist

from tenfold.data.conversations.chats import Chat
from tenfold.data.conversations.rows import Row
from tenfold.data.conversations.tokens import ChatEncoder
from tenfold.data.text.batches import shuffled
from tenfold.learn.options import GRPOConfig
from tenfold.learn.rewards import read_prompts, read_rewards
from tenfold.learn.sampler import Drawn, draw
from tenfold.learn.tasks import objectives
from tenfold.learn.tasks.policy import PolicyGradient
from tenfold.learn.tasks.rollouts import DrawnRows
from tenfold.learn.tasks.start import model_of
from tenfold.learn.tasks.tally import Tally
from tenfold.serve.request import Sampling
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import RunConfig
from tenfold.train.resolve import resolve_hyperparameters, resolve_model
from tenfold.train.run import Run
from tenfold.train.run_file import task_settings
from tenfold.train.task import Rows


class GRPO(PolicyGradient):
    """The task `grpo`. The rows of a step are drawn from the model in training when the step begins."""

    settings: GRPOConfig

    def __init__(self, config: RunConfig, settings: GRPOConfig):
        """Raises TenfoldError for prompts or rewards that cannot be read, and for sizes that do not fit one another."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            raise TenfoldError("GRPO draws its answers on one process: start it without --launch.")
        self.settings, self.tally, self.model_path = settings, Tally(), model_of(config)
        self.encoder, self.rewards = ChatEncoder.of(self.model_path), read_rewards(settings.rewards)
        self.vocab_size, self.directory = self.encoder.vocabulary.size, self.model_path
        self.spec, tokens = resolve_model(config, self.vocab_size)
        self.answers, self.seed = resolve_hyperparameters(config, tokens).batch_size, config.seed
        self.seq_len = config.data.seq_len
        if self.answers % settings.num_generations:
            raise TenfoldError(
                f"batch_size in [data] ({self.answers}) must be a multiple of num_generations ({settings.num_generations})."
            )
        self.prompts, self.held = self._split(read_prompts(config.data.corpus))
        self._flops_per_token = self.trained_share * self.spec.train_flops_per_token(self.seq_len)
        self._rows: DrawnRows | None = None
        self._generation = -1

    @classmethod
    def open(cls, config: RunConfig, home: Path, *, quiet: bool = False) -> "GRPO":
        """The task of a run file. Raises TenfoldError as the constructor does."""
        return cls(config, task_settings(config, GRPOConfig))

    def _split(self, found: list[tuple[Row, Chat]]) -> tuple[list[tuple[Row, list[int]]], list[tuple[Row, list[int]]]]:
        """Rows with the tokens of their prompts, for training and for validation, without prompts that are too long."""
        room = self.seq_len - self.settings.max_completion_length
        encoded = [(row, self.encoder.prompt(chat)) for row, chat in found]
        fitting = [(row, prompt) for row, prompt in encoded if len(prompt) <= room]
        held = min(self.settings.validation_prompts, len(fitting) // 10)
        if not held:
            raise TenfoldError(
                f"{len(fitting)} prompts have at most {room} tokens (seq_len - max_completion_length), and ten are needed: "
                "raise seq_len or give more prompts."
            )
        return fitting[held:], fitting[:held]

    def fingerprint(self) -> dict[str, str]:
        prompts = repr([prompt for part in (self.prompts, self.held) for _, prompt in part])
        return super().fingerprint() | {"prompts": sha256(prompts.encode()).hexdigest()[:16], "rewards": self.rewards.fingerprint}

    def rows(self, step: int, rows: slice) -> DrawnRows:
        """The answers of a step. They are drawn by its first call; `num_iterations` steps share them."""
        generation = step // self.settings.num_iterations
        if self._rows is None or generation != self._generation:
            self._rows, self._generation = self._draw(generation), generation
        return self._rows

    def _draw(self, generation: int) -> DrawnRows:
        s = self.settings
        groups = self.answers // s.num_generations
        chosen = shuffled(np.arange(groups, dtype=np.int64) + generation * groups, len(self.prompts), self.seed)
        prompts = [self.prompts[i] for i in chosen]
        answers = self._answers([prompt for _, prompt in prompts], s.temperature, s.num_generations, generation)
        rewards = torch.tensor(self._reward([row for row, _ in prompts], answers))
        advantages = objectives.advantages(rewards, self.scaled)
        self.tally.add("reward", rewards)
        self.tally.add("reward_std", rewards.std(1))
        self.tally.add("equal_groups", (rewards.std(1) == 0).float())
        flat = [(prompt, drawn) for (_, prompt), group in zip(prompts, answers, strict=True) for drawn in group]
        self.tally.add("length", torch.tensor([len(drawn.tokens) for _, drawn in flat]))
        self.tally.add("ended", torch.tensor([drawn.ended for _, drawn in flat]))
        rows = self._packed(flat, advantages.flatten().tolist())
        old = self._model if s.num_iterations > 1 else None  # otherwise they are the log-probabilities of the step itself
        return self._add_log_probs(rows, {"old": old, "reference": self._first})

    def _answers(self, prompts: list[list[int]], temperature: float, n: int, generation: int) -> list[list[Drawn]]:
        stops, longest = self.encoder.vocabulary.stop_tokens, self.settings.max_completion_length
        sampling = Sampling(temperature=temperature, max_tokens=longest, stop_tokens=stops, n=n)
        return draw(self._model, prompts, sampling, self.seed * 2**32 + generation * self.answers)

    def _reward(self, rows: list[Row], answers: list[list[Drawn]]) -> list[list[float]]:
        """The reward of each answer of each group."""
        n = len(answers[0])
        texts = [self.encoder.tokenizer.decode(drawn.tokens) for group in answers for drawn in group]
        values = self.rewards([row for row in rows for _ in range(n)], texts)
        return [values[i : i + n] for i in range(0, len(values), n)]

    def flops(self, rows: Rows) -> float:
        return cast(DrawnRows, rows).batch.tokens.size * self._flops_per_token * 4 / 3  # drawing costs a forward pass more

    @torch.no_grad()
    def evaluate(self, run: Run) -> dict[str, float]:
        """`reward` is the mean reward of greedy answers to the validation prompts, and `loss` is -`reward`."""
        answers = self._answers([prompt for _, prompt in self.held], 0.0, 1, 0)
        run.watchdog.beat()
        rewards = [values[0] for values in self._reward([row for row, _ in self.held], answers)]
        return {"loss": -float(np.mean(rewards)), "reward": float(np.mean(rewards))}

    def state_dict(self) -> dict[str, Any]:
        """The answers that the following steps learn from, too; empty where each step draws its own."""
        if self.settings.num_iterations == 1 or self._rows is None:
            return {}
        return {"generation": self._generation, "rows": self._rows.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self._generation, self._rows = state["generation"], DrawnRows.from_state(state["rows"])
