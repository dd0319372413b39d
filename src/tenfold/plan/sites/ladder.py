"""The next generations' chances from a ladder: what the test of its law's limit says goes into the demand."""

from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from tenfold.plan.sites.demand import DemandFile, Rung
from tenfold.scale.limit import ALARM, limit_test
from tenfold.scale.next_rung import cheapest, next_rungs
from tenfold.scale.points import read_points
from tenfold.spec.errors import TenfoldError


@dataclass(frozen=True)
class Ladder:
    """`bend_chance`: how likely the law bends where the ladder ends, after its test; `power` of the rung that would show it most
    cheaply, None where none would."""

    points: Path
    bend_chance: float
    power: float | None
    verdict: str

    @property
    def sentence(self) -> str:
        rung = (
            "no next rung would show it" if self.power is None else f"the cheapest rung that shows it does so with {self.power:.0%}"
        )
        return f"{self.points}: {self.verdict} A bend has a probability of {self.bend_chance:.0%}; {rung}."


def read_ladder(path: Path, demand: DemandFile) -> tuple[DemandFile, Ladder]:
    """Demand with the chances of a ladder, a CSV file of points or the newest generation's in a home, and what was found.

    A generation pays only where the law goes on, so its chance is `pays` times that; one more rung is as good as the cheapest that
    would show a bend. Raises TenfoldError where there are no points, or too few for a test.
    """
    points = points_file(path)
    rows, _ = read_points(points)
    training = demand.training
    found = limit_test(rows)
    chance = found.chance(training.bends)
    best = cheapest(next_rungs(rows, bend=found.asked, noise=found.noise))
    rung = Rung(best.power, ALARM, training.rung.usd) if best else Rung(0.0, 0.0)
    training = replace(training, pays=tuple(p * (1 - chance) for p in training.pays), rung=rung)
    return replace(demand, training=training), Ladder(points, chance, best.power if best else None, found.verdict)


def points_file(path: Path) -> Path:
    """The file itself, or that of the newest generation that has points."""
    if path.is_file():
        return path
    found = sorted(path.glob("*/points.csv"), key=lambda one: one.stat().st_mtime)
    if not found:
        raise TenfoldError(f"{path} holds no generation with points.csv: climb first, or give a CSV file of points.")
    return found[-1]
