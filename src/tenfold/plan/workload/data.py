"""The data beside the compute: how often a corpus is repeated, by this generation and the next ones, and what that costs."""

import math
from dataclasses import dataclass

from tenfold.spec.laws import facts
from tenfold.spec.units import si

HALF_LIFE = 15.39  # epochs beyond the first after which repeated tokens are worth 1 / e (Muennighoff et al. 2023, R*_D)
GENERATION = 10.0  # times the compute of the one before
LAW = "besiroglu"
GENERATIONS = 3


@dataclass(frozen=True)
class Data:
    """Tokens of a run and of its corpus. `effective_tokens`: fresh tokens that would be worth as much (Muennighoff et al. 2023,
    arXiv 2305.16264, eq. 5). `loss_of_repetition`: loss in nats above that of as many fresh tokens, by the law of Besiroglu et
    al. 2024."""

    generation: int
    tokens: float
    unique_tokens: float
    epochs: float
    effective_tokens: float
    loss_of_repetition: float


def data_of(tokens: float, unique_tokens: float | None = None, generation: int = 0) -> Data:
    """What so many tokens ask of a corpus; the largest published one where none is given."""
    unique = unique_tokens or float(facts()["data"]["unique_tokens"])
    used = min(tokens, unique)
    effective = used * (1 + HALF_LIFE * -math.expm1(-(tokens / used - 1) / HALF_LIFE))
    law = facts()[LAW]
    loss = law["B"] * (effective ** -law["beta"] - tokens ** -law["beta"])
    return Data(generation, tokens, unique, tokens / unique, effective, max(0.0, loss))


def generations(tokens: float, unique_tokens: float | None = None, feedback_tokens: float = 0.0) -> list[Data]:
    """This generation and the next, each of ten times the compute: tokens grow with its square root, and the corpus by
    `feedback_tokens` each time."""
    first = data_of(tokens, unique_tokens)
    return [
        data_of(tokens * GENERATION ** (n / 2), first.unique_tokens + n * feedback_tokens, n) for n in range(GENERATIONS + 1)
    ]  # fmt: skip


def data_note(tokens: float, unique_tokens: float | None = None, feedback_tokens: float = 0.0) -> str:
    """What the corpus allows, in a sentence or two."""
    this, *later = generations(tokens, unique_tokens, feedback_tokens)
    corpus = "the corpus given" if unique_tokens else "the largest published corpus"
    words = f"Data: {si(tokens)} tokens are {this.epochs:.2g} times {corpus} ({si(this.unique_tokens)})"
    if this.epochs > facts()["data"]["harmless_epochs"]:
        words += f": beyond {facts()['data']['harmless_epochs']:g} epochs repetition tells, here {_nats(this)}"
    elif this.epochs > 1:
        words += f", a repetition that costs {_nats(this)}"
    short = next((d for d in later if d.epochs > 1), None)
    if this.epochs <= 1 and short:
        more = GENERATION**short.generation
        words += f"; {more:,.0f} times the compute repeats it {short.epochs:.2g} times, for {_nats(short)}"
    return f"{words}."


def _nats(data: Data) -> str:
    """What repetition costs, as `0.012 nats` or `less than 0.001 nats`."""
    return f"{data.loss_of_repetition:.3f} nats" if data.loss_of_repetition >= 5e-4 else "less than 0.001 nats"
