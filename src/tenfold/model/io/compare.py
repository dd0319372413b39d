"""Compare two models on the same texts: their greedy answers, and the divergence of their next-token distributions."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy import stats
from tokenizers import Tokenizer
from torch import Tensor

from tenfold.model.llama import Llama

PROMPTS = (
    "The capital of France is",
    "def add(a, b):\n    ",
    "Once upon a time there was",
    "In 1969, the first people",
    "Water boils at 100 degrees, and",
    "import os\nimport sys\n",
)
ANSWER = 8  # tokens per greedy answer


class Answer(NamedTuple):
    """A model's greedy answer to a prompt.

    `tokens` are those of the prompt, followed from index `begin` by those of the answer. `log_probs` float32 [tokens, vocab] are
    the log-probabilities of the next token after each of `tokens`.
    """

    prompt: str
    begin: int
    tokens: list[int]
    log_probs: Tensor

    @property
    def said(self) -> list[int]:
        """The tokens of the answer alone."""
        return self.tokens[self.begin :]


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval by Student's t."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} (95 %: {self.low:.3g} to {self.high:.3g})"


def interval(values: Sequence[float]) -> Interval:
    """The mean of at least two independent values."""
    mean = sum(values) / len(values)
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * sd / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def answers(model: Llama, tokenizer: Tokenizer | None, prompts: Sequence[str] = PROMPTS, length: int = ANSWER) -> list[Answer]:
    """A model's greedy answers of `length` tokens to `prompts`; without a tokenizer, the bytes of a prompt serve as its tokens."""
    found = []
    for prompt in prompts:
        ids = tokenizer.encode(prompt).ids if tokenizer else [byte % model.spec.vocab_size for byte in prompt.encode()]
        ids = ids[: max(1, model.spec.context - length)]
        tokens = greedy(model, ids, length)
        found.append(Answer(prompt, len(ids), tokens, log_probs(model, tokens)))
    return found


def greedy(model: Llama, ids: list[int], length: int) -> list[int]:
    """The tokens `ids`, followed by a greedy continuation of `length` tokens."""
    tokens = list(ids)
    with torch.no_grad():
        for _ in range(length):
            tokens.append(int(model.head(model.hidden(torch.tensor([tokens]))[0, -1]).argmax()))
    return tokens


@torch.no_grad()
def log_probs(model: Llama, tokens: Sequence[int]) -> Tensor:
    """The log-probabilities of the next token after each token: float32 [tokens, vocab]."""
    return model(torch.tensor([list(tokens)]))[0].log_softmax(-1)


def divergence(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Interval:
    """The mean Kullback-Leibler divergence KL(ours || theirs) in nats per token, over texts given as log-probabilities
    [tokens, vocab]."""
    kl = [float((p.exp() * (p - q)).sum(-1).mean()) for p, q in zip(ours, theirs, strict=True)]
    return interval(kl)
