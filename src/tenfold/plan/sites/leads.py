"""Lead times as they become known: one that has ended is known, one that has not is longer than the time waited so far.

Each phase of a site, the halls, and each chip have a lead time that is independent of the others. All orders of a chip take
equally long.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tenfold.plan.ranges import Range
from tenfold.plan.sites.inputs import SitesFile

SOON = 1.0  # quarters from now, when something is expected that is later than its whole range

Wait = tuple[float, float]  # (quarter of the beginning, quarter at which it is ready)


def of_phase(phase: str, site: str) -> str:
    """The name of a phase's lead time as an unknown."""
    return f"lead {phase} {site}"


def of_part(part: str) -> str:
    """The name of the lead time of `halls` or of a chip as an unknown."""
    return f"lead {part}"


@dataclass(frozen=True)
class Leads:
    """Lead times: `draws` by the name of the unknown, and the quantile `level` with which is planned."""

    draws: dict[str, np.ndarray]
    level: float

    @classmethod
    def of(cls, file: SitesFile) -> "Leads":
        figures = {of_phase(name, place.name): phase.quarters for name, phase in file.phases.items() for place in file.sites}
        figures |= {of_part("halls"): file.halls.quarters} | {of_part(key): chip.quarters for key, chip in file.chips.items()}
        return cls({name: Range.of(figure, name).draws for name, figure in figures.items()}, file.lead_level)

    def expected(self, name: str, waits: Iterable[Wait], quarter: float) -> float:
        """The lead time to plan with at a quarter: the true one if one of `waits` is ready, otherwise the quantile of those draws
        that exceed the longest wait so far."""
        waits = list(waits)
        for begun, ready in waits:
            if ready <= quarter:
                return ready - begun
        waited = max((quarter - begun for begun, _ in waits), default=0.0)
        longer = self.draws[name][self.draws[name] > waited]
        return float(np.quantile(longer, self.level)) if len(longer) else waited + SOON
