"""Next rungs, and the probability with which each would show that the law bends at the end of the ladder."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tenfold.scale.bends import Bends, best_law, log_flops_of
from tenfold.scale.limit import ALARM, SURE
from tenfold.scale.points import Point, once

TIMES = (2.0, 3.0, 5.0, 10.0, 20.0, 30.0)  # multiples of the largest compute
RUNS = (1, 2, 3, 5)  # repetitions at that compute


@dataclass(frozen=True)
class NextRung:
    """`runs` runs of `flops` each, and the probability `power` that they show a bend that begins at the largest compute so far."""

    flops: float
    params: float
    tokens: float
    runs: int
    power: float

    @property
    def cost(self) -> float:
        """FLOPs of all runs."""
        return self.runs * self.flops

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "cost": self.cost}


def next_rungs(points: Sequence[Point], *, bend: float, noise: float) -> list[NextRung]:
    """Rungs of 2 to 30 times the largest compute, at the tokens per parameter of the best run, cheapest first.

    `bend` is the bend's size as a share of the loss per decade of compute; `noise` the relative noise of one run.
    """
    points = once(points)
    law, log_flops = best_law(points), log_flops_of(points)
    best, top = min(points, key=lambda p: p.loss), float(log_flops.max())
    here = law.slope(law.data.u, law.data.v)
    found = []
    for times in TIMES:
        grown = math.sqrt(times * 10**top / best.flops)
        params, tokens = best.params * grown, best.tokens * grown
        there = law.slope(np.log([params]) - law.data.log_n, np.log([tokens]) - law.data.log_d)
        for runs in RUNS:
            bends = Bends.of(
                np.concatenate([here, np.repeat(there, runs, 0)]),
                np.concatenate([law.root_weight, np.ones(runs)]),
                np.concatenate([log_flops, np.full(runs, top + math.log10(times))]),
            )
            power = bends.power(top, ALARM)(math.log1p(bend) / noise)
            found.append(NextRung(times * 10**top, params, tokens, runs, power))
    return sorted(found, key=lambda rung: rung.cost)


def cheapest(rungs: Sequence[NextRung]) -> NextRung | None:
    """The cheapest rung that shows the bend with a probability of 80 % or more; None where there is none."""
    return min((rung for rung in rungs if rung.power >= SURE), key=lambda rung: rung.cost, default=None)
