"""The ladder: which sizes are trained at which compute, before anything is known of the law."""

import math
from dataclasses import dataclass

from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec
from tenfold.spec.shapes import TOKENS_PER_PARAMETER, shape_of, widths

STEP = 2.0  # between the computes of neighbouring rungs
RUNGS = 4
SIZES = 5
LEAST_SIZES = 3
LEAST_RATIO = 0.5  # tokens per parameter below which a run says nothing of trained models


@dataclass(frozen=True)
class Rung:
    """One run of the ladder."""

    flops: float
    width: int
    params: int
    tokens: int

    @property
    def name(self) -> str:
        return f"{self.flops:.2e}-w{self.width}".replace("+", "")


def plan_ladder(
    top_flops: float, vocab_size: int, seq_len: int, *, rungs: int = RUNGS, sizes: int = SIZES, family: str = "llama3"
) -> list[Rung]:
    """Runs up to `top_flops`, cheapest first: `rungs` budgets a factor of `STEP` apart, each with at most `sizes` widths,
    those whose tokens per parameter lie nearest to `TOKENS_PER_PARAMETER` (in the logarithm); past the first
    `LEAST_SIZES` only where they are above `LEAST_RATIO`.

    Raises TenfoldError where the compute is too small for the smallest models to see enough steps.
    """
    ladder = []
    for i in reversed(range(rungs)):
        budget = top_flops / STEP**i
        shapes = [shape_of(family, width, vocab_size) for width in widths()]
        shapes.sort(key=lambda s: abs(math.log(_ratio(s, budget, seq_len) / TOKENS_PER_PARAMETER)))
        kept = shapes[:LEAST_SIZES] + [s for s in shapes[LEAST_SIZES:sizes] if _ratio(s, budget, seq_len) >= LEAST_RATIO]
        for spec in sorted(kept, key=lambda s: s.dim):
            tokens = round(budget / spec.train_flops_per_token(seq_len))
            ladder.append(Rung(budget, spec.dim, spec.parameters().matrix_active, tokens))
    if min(r.tokens for r in ladder) < 64 * seq_len:
        raise TenfoldError(
            f"A ladder below {top_flops:.2g} FLOPs leaves fewer than 64 sequences for its smallest run: climb higher."
        )
    return ladder


def nearest_shape(params: float, vocab_size: int, family: str = "llama3") -> ModelSpec:
    """The shape of the family whose matrix parameters lie nearest to `params`."""
    return min(
        (shape_of(family, width, vocab_size) for width in widths()),
        key=lambda spec: abs(math.log(spec.parameters().matrix_active / params)),
    )


def _ratio(spec: ModelSpec, flops: float, seq_len: int) -> float:
    return flops / spec.train_flops_per_token(seq_len) / spec.parameters().matrix_active
