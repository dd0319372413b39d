"""Lead times as they become known: what has arrived tells its own, what is waited for is longer than it has been waited for.

Lead times are unknowns of their own: of a phase on a site, of halls, of a chip. All orders of a chip take equally long.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tenfold.plan.ranges import Range
from tenfold.plan.sites.inputs import SitesFile

SOON = 1.0  # quarters: when that is expected which is later than anything in its range

Wait = tuple[float, float]  # the quarters at which it begins and at which it is ready


def of_phase(phase: str, site: str) -> str:
    """The name of the unknown."""
    return f"lead {phase} {site}"


def of_part(part: str) -> str:
    """The name of the unknown, of `halls` or a chip."""
    return f"lead {part}"


@dataclass(frozen=True)
class Leads:
    """`draws` by the name of the unknown; plans count on the quantile `level`."""

    draws: dict[str, np.ndarray]
    level: float

    @classmethod
    def of(cls, file: SitesFile) -> "Leads":
        figures = {of_phase(name, place.name): phase.quarters for name, phase in file.phases.items() for place in file.sites}
        figures |= {of_part("halls"): file.halls.quarters} | {of_part(key): chip.quarters for key, chip in file.chips.items()}
        return cls({name: Range.of(figure, name).draws for name, figure in figures.items()}, file.lead_level)

    def expected(self, name: str, waits: Iterable[Wait], quarter: float) -> float:
        """The lead time to plan with at a quarter: as it was where one is ready, else a quantile of those that are long enough."""
        waits = list(waits)
        for begun, ready in waits:
            if ready <= quarter:
                return ready - begun
        waited = max((quarter - begun for begun, _ in waits), default=0.0)
        longer = self.draws[name][self.draws[name] > waited]
        return float(np.quantile(longer, self.level)) if len(longer) else waited + SOON
