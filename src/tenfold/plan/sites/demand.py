"""`demand.toml`: future demand as a random process, of training generations that come or not, and of use that grows.

Demand is in million hours per year of the reference accelerator, by kind: `training` and any number of kinds of use. The file has
hours per year.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from tenfold.plan.ranges import Z90, Range
from tenfold.plan.sites.inputs import Figure, Quarters, read_toml
from tenfold.spec.errors import TenfoldError
from tenfold.spec.ranges import Positive, Share, Text, convert

TRAINING = "training"


class Rung(Struct, frozen=True, forbid_unknown_fields=True):
    """One more rung of the ladder as a test of whether the next generation pays: `sees` is the probability that it says so where
    the generation pays, `false_alarms` where it does not; `usd` is its cost."""

    sees: Share
    false_alarms: Share
    usd: Figure = 0.0


class Training(Struct, frozen=True, forbid_unknown_fields=True):
    """Training generations: one comes every `every_quarters`, if it pays, and takes `times` the hours of the one before.

    `pays`: the probability of each generation that it is worth its cost, given that the one before was; the last value is that of
    all later ones. `bends`: the probability, before its test, that the law bends at the end of a ladder; used with --ladder.
    """

    hours_per_year: Positive
    first_quarter: Quarters
    every_quarters: Annotated[float, Meta(gt=0, le=80)]
    times: Figure
    pays: tuple[Share, ...]
    bends: Share = 0.2
    rung: Rung = Rung(0.8, 0.05)
    source: str = ""


class Growth(Struct, frozen=True, forbid_unknown_fields=True):
    """A kind of use: hours per year today, and the growth factor per year."""

    hours_per_year: Positive
    per_year: Figure
    source: str = ""


class DemandFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. `quarters`: the beginning of each stage, the first of which is 0, this quarter. `end_quarter`: the horizon.
    `branches`: of each node by stage, the last value for all later stages."""

    quarters: tuple[Quarters, ...]
    end_quarter: Quarters
    training: Training
    growth: dict[Text, Growth]
    branches: tuple[Annotated[int, Meta(ge=1, le=8)], ...] = (2,)
    version: int = 1

    @property
    def kinds(self) -> tuple[str, ...]:
        return (TRAINING, *self.growth)


def read_demand(path: Path | None = None) -> DemandFile:
    """Read a `demand.toml`, by default the package's example. Raises TenfoldError for values out of range or in contradiction."""
    where = str(path or "demand.toml")
    made = convert(read_toml(path, "demand.toml"), DemandFile, where)
    times = [*made.quarters, made.end_quarter]
    if times[0] != 0 or times != sorted(set(times)) or len(times) < 3:
        raise TenfoldError(f"{where}: quarters must begin at 0 and rise over at least two stages to end_quarter.")
    if not made.training.pays or TRAINING in made.growth:
        raise TenfoldError(f"{where}: give at least one probability in pays of [training], and no table [growth.{TRAINING}].")
    for name, figure in {TRAINING: made.training.times, **{k: g.per_year for k, g in made.growth.items()}}.items():
        if Range.of(figure).low <= 0:
            raise TenfoldError(f"{where}: the growth of {name} must be above 0.")
    return made


@dataclass(frozen=True)
class State:
    """The state of demand at a quarter: million hours per year by kind, generations so far, and whether they still pay."""

    quarter: float
    hours: tuple[float, ...]
    generation: int = 0
    pays: bool = True


@dataclass(frozen=True)
class Paths:
    """Sampled futures: `hours` [paths, stages, kinds] in millions per year, `generation` and `pays` [paths, stages]."""

    quarters: tuple[float, ...]
    hours: np.ndarray
    generation: np.ndarray
    pays: np.ndarray

    def state(self, path: int, stage: int) -> State:
        hours, at = tuple(map(float, self.hours[path, stage])), (path, stage)
        return State(self.quarters[stage], hours, int(self.generation[at]), bool(self.pays[at]))


def today(demand: DemandFile) -> State:
    """The state of demand at this quarter."""
    return State(0.0, tuple(h / 1e6 for h in (demand.training.hours_per_year, *(g.hours_per_year for g in demand.growth.values()))))


def sample(demand: DemandFile, state: State, quarters: tuple[float, ...], number: int, seed: int) -> Paths:
    """Sample `number` futures from a state on. The first of `quarters` is that of the state."""
    random, training = np.random.default_rng(seed), demand.training
    hours = np.empty((number, len(quarters), len(demand.kinds)))
    hours[:, 0] = state.hours
    generation = np.full((number, len(quarters)), state.generation)
    pays = np.full((number, len(quarters)), state.pays)
    times, growths = Range.of(training.times), [Range.of(g.per_year) for g in demand.growth.values()]
    for stage in range(1, len(quarters)):
        years = (quarters[stage] - quarters[stage - 1]) / 4
        hours[:, stage] = hours[:, stage - 1]
        for kind, growth in enumerate(growths, start=1):
            noise = random.standard_normal(number) * math.sqrt(years) * _sigma(growth)
            hours[:, stage, kind] *= np.exp(years * math.log(growth.mid) + noise)
        generation[:, stage], pays[:, stage] = generation[:, stage - 1], pays[:, stage - 1]
        for coming in range(_generations(training, quarters[stage - 1]) + 1, _generations(training, quarters[stage]) + 1):
            pays[:, stage] &= random.random(number) < training.pays[min(coming, len(training.pays)) - 1]
            factor = times.mid * np.exp(random.standard_normal(number) * _sigma(times))
            hours[:, stage, 0] *= np.where(pays[:, stage], factor, 1.0)
            generation[:, stage] += pays[:, stage]
    return Paths(tuple(quarters), hours, generation, pays)


def _sigma(figure: Range) -> float:
    return math.log(figure.high / figure.low) / 2 / Z90


def _generations(training: Training, quarter: float) -> int:
    """How many new generations may have come by a quarter."""
    return max(0, math.floor((quarter - training.first_quarter) / training.every_quarters + 1))
