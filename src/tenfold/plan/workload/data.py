"""Data limits: how many epochs this generation and the next take over the corpus, and the loss by repetition."""

import math
from dataclasses import dataclass

from tenfold.spec.laws import facts
from tenfold.spec.units import si

DECAY_EPOCHS = 15.39  # repetitions after which a repeated token is worth 1 / e of a new one (Muennighoff et al. 2023, R*_D)
GENERATION = 10.0  # factor of compute from one generation to the next
LAW = "besiroglu"
GENERATIONS = 3  # after this one


@dataclass(frozen=True)
class Data:
    """The tokens of a run and the unique tokens of its corpus.

    `effective_tokens`: new tokens that would be worth as much (Muennighoff et al. 2023, arXiv 2305.16264, eq. 5).
    `loss_of_repetition`: loss in nats above that of as many new tokens, by the law of Besiroglu et al. (arXiv 2404.10102).
    """

    generation: int
    tokens: float
    unique_tokens: float
    epochs: float
    effective_tokens: float
    loss_of_repetition: float


def data_of(tokens: float, unique_tokens: float | None = None, generation: int = 0) -> Data:
    """The epochs and effective tokens of a run over a corpus; without `unique_tokens`, the largest published corpus."""
    unique = unique_tokens or float(facts()["data"]["unique_tokens"])
    used = min(tokens, unique)
    effective = used * (1 + DECAY_EPOCHS * -math.expm1(-(tokens / used - 1) / DECAY_EPOCHS))
    law = facts()[LAW]
    loss = law["B"] * (effective ** -law["beta"] - tokens ** -law["beta"])
    return Data(generation, tokens, unique, tokens / unique, effective, max(0.0, loss))


def generations(tokens: float, unique_tokens: float | None = None, feedback_tokens: float = 0.0) -> list[Data]:
    """This generation and the next three, each with ten times the compute: tokens grow with its square root, and the corpus by
    `feedback_tokens` per generation."""
    first = data_of(tokens, unique_tokens)
    return [
        data_of(tokens * GENERATION ** (n / 2), first.unique_tokens + n * feedback_tokens, n) for n in range(GENERATIONS + 1)
    ]  # fmt: skip


def data_note(tokens: float, unique_tokens: float | None = None, feedback_tokens: float = 0.0) -> str:
    """A sentence on how often the run, or else a later generation, repeats the corpus."""
    this, *later = generations(tokens, unique_tokens, feedback_tokens)
    corpus = "the corpus given" if unique_tokens else "the largest published corpus"
    words = f"Data: {si(tokens)} tokens are {this.epochs:.2g} times {corpus} ({si(this.unique_tokens)})"
    if this.epochs > facts()["data"]["harmless_epochs"]:
        words += f": beyond {facts()['data']['harmless_epochs']:g} epochs, repetition costs loss, here {_nats(this)}"
    elif this.epochs > 1:
        words += f", a repetition that costs {_nats(this)}"
    short = next((d for d in later if d.epochs > 1), None)
    if this.epochs <= 1 and short:
        more = GENERATION**short.generation
        words += f"; {more:,.0f} times the compute takes {short.epochs:.2g} epochs, which costs {_nats(short)}"
    return f"{words}."


def _nats(data: Data) -> str:
    """The loss by repetition, as `0.012 nats` or `less than 0.001 nats`."""
    return f"{data.loss_of_repetition:.3f} nats" if data.loss_of_repetition >= 5e-4 else "less than 0.001 nats"
