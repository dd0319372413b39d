"""The chance that the next generation pays: that it is worth more than it costs."""

import math
from functools import lru_cache
from pathlib import Path

from msgspec import Struct

from tenfold.console.document import Computed, Figure, read_json, stamp
from tenfold.spec.errors import TenfoldError

WORTH = "worth.csv"  # in the home: `loss` and `value`, in the money of the plan
MOST = 6  # generations that are looked ahead


class Chance(Struct):
    """The probability that the value rises by its cost or more, computed from `files`; else a sentence why it is not known."""

    files: list[str]
    probability: Computed | None = None
    missing: str = ""


def chance(home: Path, law: str, flops: float, cost: Figure | None) -> Chance:
    """The chance that the generation of these FLOPs pays, by the law in this file and the home's table of worth."""
    if not (home / WORTH).exists():
        return Chance([], missing=f"Write what a loss is worth, as rows of loss and value in USD, to {WORTH} in the home.")
    if cost is None or not isinstance(cost.value, int | float):
        return Chance([WORTH], missing="The plan says no cost.")
    stamps = stamp(home / law), stamp(home / WORTH)
    try:
        found = _probability(home / law, home / WORTH, stamps, flops, float(cost.value))
        return Chance([law, WORTH, cost.file], Computed(found, "that its value rises by its cost or more"))
    except TenfoldError as error:
        return Chance([law, WORTH], missing=str(error))


@lru_cache(64)
def _probability(law_file: Path, worth_file: Path, _: object, flops: float, cost: float) -> float:
    """Of a generation so many times ten above the law's largest compute, beside the one before. Raises TenfoldError."""
    from tenfold.scale.law import Law
    from tenfold.scale.worth import next_generations, read_worth

    law = Law.from_dict(read_json(law_file))
    ahead = round(math.log10(flops / law.largest_flops))
    if not 1 <= ahead <= MOST:
        raise TenfoldError(f"The plan is {ahead} times ten from the law's largest run: plan the next times ten.")
    return next_generations(law, read_worth(worth_file), generations=ahead).chances(cost)[-1]
