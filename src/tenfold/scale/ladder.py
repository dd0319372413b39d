"""The ladder: the sizes that are trained at each compute, chosen before any law is fitted."""

import math
from dataclasses import dataclass
from statistics import median

from tenfold.spec.errors import TenfoldError
from tenfold.spec.shapes import shape_of, widths

STEP = 2.0  # ratio of the computes of neighbouring rungs
RUNGS = 4
SIZES = 5  # at each compute
CENTRE = 10.0  # tokens per parameter around which a rung's sizes lie, so that the size of the lowest loss is among them
# Induction heads form at 100 to 300 thousand tokens at every size. Until then the loss follows another curve, from which the
# later one cannot be forecast.
LEAST_TOKENS = 300_000


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
    """Runs up to `top_flops`, cheapest first: `rungs` budgets a factor of `STEP` apart, each with the `sizes` widths whose
    tokens per parameter lie nearest to `CENTRE` (in the logarithm).

    Runs of fewer than `LEAST_TOKENS` tokens are left out; where the top rung itself has few tokens, runs of less than half of its
    median are. Raises TenfoldError where the smallest run would have fewer than 64 sequences.
    """
    budgets = [top_flops / STEP**i for i in reversed(range(rungs))]
    rows = [_sizes(budget, vocab_size, seq_len, sizes, family) for budget in budgets]
    least = min(LEAST_TOKENS, median(r.tokens for r in rows[-1]) / 2)
    ladder = [rung for row in rows for rung in row if rung.tokens >= least]
    if min(r.tokens for r in ladder) < 64 * seq_len:
        raise TenfoldError(
            f"A ladder of up to {top_flops:.2g} FLOPs leaves fewer than 64 sequences of {seq_len} tokens for its smallest run: "
            "climb higher (--top) or with a shorter --seq-len."
        )
    return ladder


def _sizes(budget: float, vocab_size: int, seq_len: int, sizes: int, family: str) -> list[Rung]:
    """The runs of one compute, narrowest first."""
    found = []
    for width in widths():
        spec = shape_of(family, width, vocab_size)
        tokens = round(budget / spec.train_flops_per_token(seq_len))
        found.append(Rung(budget, width, spec.parameters().matrix_active, tokens))
    found.sort(key=lambda r: abs(math.log(max(1, r.tokens) / r.params / CENTRE)))
    return sorted(found[:sizes], key=lambda r: r.width)
