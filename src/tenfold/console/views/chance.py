"""The chance that the next generation pays: that its value exceeds the last one's by at least its cost."""

import math
from functools import lru_cache
from pathlib import Path

from msgspec import Struct

from tenfold.console.document import Computed, Figure, read_json, stamp
from tenfold.spec.errors import TenfoldError

WORTH = "worth.csv"  # in the home, with the columns `loss` and `value` in USD
MOST = 6  # generations ahead, at most


class Chance(Struct):
    """The probability that the value rises by at least the cost, computed from `files`, or a sentence why it is unknown
    (`missing`)."""

    files: list[str]
    probability: Computed | None = None
    missing: str = ""


def chance(home: Path, law: str, flops: float, cost: Figure | None) -> Chance:
    """The chance that a generation of so many FLOPs pays, by the law in the file `law` and the home's `worth.csv`."""
    if not (home / WORTH).exists():
        return Chance([], missing=f"Write the value of a loss, as rows of loss and value in USD, to {WORTH} in the home.")
    if cost is None or not isinstance(cost.value, int | float):
        return Chance([WORTH], missing="The plan has no cost.")
    stamps = stamp(home / law), stamp(home / WORTH)
    try:
        found = _probability(home / law, home / WORTH, stamps, flops, float(cost.value))
        return Chance([law, WORTH, cost.file], Computed(found, "that its value rises by at least its cost"))
    except TenfoldError as error:
        return Chance([law, WORTH], missing=str(error))


@lru_cache(64)
def _probability(law_file: Path, worth_file: Path, _: object, flops: float, cost: float) -> float:
    """The probability for a generation of 10, 100, ... times the law's largest compute. Raises TenfoldError for other compute."""
    from tenfold.scale.law import Law
    from tenfold.scale.worth import next_generations, read_worth

    law = Law.from_dict(read_json(law_file))
    ahead = round(math.log10(flops / law.largest_flops))
    if not 1 <= ahead <= MOST:
        raise TenfoldError(f"The plan has 10^{ahead} times the compute of the law's largest run: plan for ten times.")
    return next_generations(law, read_worth(worth_file), generations=ahead).chances(cost)[-1]
