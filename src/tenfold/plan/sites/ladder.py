"""The chances of the next generations from a ladder, by the limit test of its law."""

from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from tenfold.plan.sites.demand import DemandFile, Rung
from tenfold.plan.sites.inputs import Figure
from tenfold.scale.limit import ALARM, limit_test
from tenfold.scale.next_rung import cheapest, next_rungs
from tenfold.scale.points import read_points
from tenfold.spec.errors import TenfoldError


@dataclass(frozen=True)
class Ladder:
    """`bend_chance`: the probability, after the test, that the law bends at the end of the ladder. `power`: that of the cheapest
    next rung that would show a bend; None where none would."""

    points: Path
    bend_chance: float
    power: float | None
    verdict: str

    @property
    def sentence(self) -> str:
        rung = (
            "no next rung would show it"
            if self.power is None
            else f"the cheapest next rung that would show it does so with a probability of {self.power:.0%}"
        )
        return f"{self.points}: {self.verdict} A bend has a probability of {self.bend_chance:.0%}; {rung}."


def read_ladder(path: Path, demand: DemandFile) -> tuple[DemandFile, Ladder]:
    """The demand with the chances of generations by a ladder, and the result of the ladder's test.

    `path` is a CSV file of points, or a home whose newest points are used. A generation pays only where the law holds, so its
    probability is `pays` times that of the law. One more rung is the cheapest that would show a bend. Raises TenfoldError where
    there are no points, or too few for a test.
    """
    points = points_file(path)
    rows, _ = read_points(points)
    training = demand.training
    found = limit_test(rows)
    chance = found.chance(training.bends)
    best = cheapest(next_rungs(rows, bend=found.asked, noise=found.noise))
    rung = _as_test_of_paying(best.power, chance, training.pays[0], training.rung.usd) if best else Rung(0.0, 0.0)
    training = replace(training, pays=tuple(p * (1 - chance) for p in training.pays), rung=rung)
    return replace(demand, training=training), Ladder(points, chance, best.power if best else None, found.verdict)


def _as_test_of_paying(power: float, bend_chance: float, pays: float, usd: Figure) -> Rung:
    """A rung that shows a bend with the probability `power`, and raises an alarm with `ALARM` where there is none, as a test of
    whether the next generation pays: silence says that it does.

    A generation that does not pay may do so on a law that holds (`pays` is the probability of paying on one), which the rung
    cannot tell. Its false alarms are therefore a mixture of both cases.
    """
    fails_straight, fails_bent = (1 - bend_chance) * (1 - pays), bend_chance
    silent = fails_straight * (1 - ALARM) + fails_bent * (1 - power)
    return Rung(1 - ALARM, silent / (fails_straight + fails_bent) if fails_straight + fails_bent else 0.0, usd)


def points_file(path: Path) -> Path:
    """The file itself, or the points.csv of the newest generation in a home. Raises TenfoldError where there is none."""
    if path.is_file():
        return path
    found = sorted(path.glob("*/points.csv"), key=lambda one: one.stat().st_mtime)
    if not found:
        raise TenfoldError(f"{path} has no generation with a points.csv: climb first, or give a CSV file of points.")
    return found[-1]
