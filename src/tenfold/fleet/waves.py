"""The requests that come to the services of the circle's fleet: drawn from what a slot was measured to answer, forecast, and
counted.

Each service has a day of requests. That of ranking begins later, so that its peak comes after chat's; before, its rate is that of
the day's first hour.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct, convert

from tenfold.data.interactions.events import item_names
from tenfold.fleet.demo.wave import PEAK, Wave, demand_at, draw_arrivals, draw_days, forecast_peak
from tenfold.fleet.front.control import Front
from tenfold.fleet.ledger import Lease
from tenfold.fleet.slots.live import Live
from tenfold.fleet.slots.slots import Demand
from tenfold.spec.files import read_lines
from tenfold.spec.forecasts import around

BUSIEST = 1.5  # the height of the usual day, in what one slot answers
ANSWER_S = 0.25  # what a chat answer is made to take
PROBE_TOKENS = 100
# Requests/s that a slot of ranking is planned for. It could answer more, but its clients and the front share the machine's cores.
PLANNED = 4.0
KINDS = ("demand", "switch_seconds", "lost_work_s")  # of forecasts
HISTORY = 8  # items of a user who asks for recommendations
Body = Callable[[int], dict[str, Any]]


class Shape(NamedTuple):
    """When a service's day begins, in hours, and what is added to the seed that it is drawn with."""

    begins_h: int
    seed: int


SHAPES = {"chat": Shape(0, 0), "rank": Shape(14, 10_000)}


class Traffic(Struct, frozen=True):
    """What was measured of a service before its wave: the seconds in which it starts, the requests/s that a slot answers, and the
    tokens of an answer; and the rates by hour of the days before."""

    start_s: float
    per_slot: float
    days: list[list[float]]
    tokens: int = 0


class Measured(Struct, frozen=True):
    """The content of `measured.json`: the seconds of an hour and those in which a training run starts, and the services."""

    hour_s: float
    train_start_s: float
    services: dict[str, Traffic]


def traffic(name: str, front: Front, start_s: float, seed: int) -> Traffic:
    """Measure what a slot of a running service answers, and draw the days before the wave from that."""
    per_slot, tokens = PLANNED, 0
    if name == "chat":
        front.ask(_chat(0, PROBE_TOKENS))
        token_s = statistics.median(front.ask(_chat(0, PROBE_TOKENS)).seconds for _ in range(5)) / PROBE_TOKENS
        tokens = max(16, min(1000, round(ANSWER_S / token_s)))
        per_slot = 1 / (tokens * token_s)
    return Traffic(start_s, per_slot, _days(name, per_slot, seed)[:-1], tokens)


def _days(name: str, per_slot: float, seed: int) -> list[list[float]]:
    """The days before the wave, and the day of the wave."""
    return draw_days(8, BUSIEST * per_slot, seed + SHAPES[name].seed)


def forecasts_of(name: str, found: Measured, back_s: float) -> dict[str, tuple[str, tuple[float, ...]]]:
    """By kind, the unit and quantiles of a service's forecasts: the requests in its peak hours, the seconds of a switch to it, and
    the work that a loan loses, after which the training needs `back_s` seconds to start again."""
    of = found.services[name]
    return {
        "demand": ("requests", forecast_peak(of.days, found.hour_s)),
        # The owner saves and leaves, and the server starts. Switches of six homes lay 11 % around this: bench/results/circle.json.
        "switch_seconds": ("s", around(of.start_s + 1, 0.15)),
        "lost_work_s": ("s", around(back_s + 0.3, 0.6)),  # it leaves, and later starts again
    }


class Waves:
    """The services' waves on a live fleet, which gets their demands. Those of an earlier call are gone on with."""

    def __init__(self, folder: Path, found: Measured, fleet: Live, bodies: Mapping[str, Body], seed: int):
        self._opened, self.arrivals, self._waves = ExitStack(), dict[str, list[float]](), dict[str, Wave]()
        for name, of in found.services.items():
            day = _delayed(name, _days(name, of.per_slot, seed)[-1])
            arrivals = self.arrivals[name] = draw_arrivals(day, found.hour_s, seed + SHAPES[name].seed + 1)
            wave = Wave(answers_file(folder, name), arrivals, bodies[name], fleet.fronts[name], fleet.world.clock)
            self._waves[name] = self._opened.enter_context(closing(wave))
        fleet.world.demands = {name: self._demand(name, found) for name in found.services}

    def _demand(self, name: str, found: Measured) -> Callable[[float], Demand]:
        wave, arrivals, of = self._waves[name], self.arrivals[name], found.services[name]
        yesterday = _delayed(name, of.days[-1])
        return lambda now: demand_at(wave.passed(now), arrivals, yesterday, found.hour_s, of.per_slot)

    @property
    def over(self) -> bool:
        """Whether all requests have answers. Raises the error of a request that failed."""
        return all([wave.over for wave in self._waves.values()])

    def close(self) -> None:
        """Send no further requests."""
        self._opened.close()


def answers_file(folder: Path, name: str) -> Path:
    """Where the answers of a service's wave are kept."""
    return folder / f"answers-{name}.jsonl"


def _delayed(name: str, day: Sequence[float]) -> list[float]:
    """The rates by hour from the beginning of the waves on: the day of a service may begin later."""
    return [day[0]] * SHAPES[name].begins_h + list(day)


def bodies_of(found: Measured, ranker: Path | None) -> dict[str, Body]:
    """For each service a function from the number of a request to its body. Requests for recommendations have histories of items
    that the ranker knows."""
    bodies: dict[str, Body] = {"chat": lambda i: _chat(i, found.services["chat"].tokens)}
    if ranker is not None:
        names = [name for name in item_names(ranker) if name]
        bodies["rank"] = lambda i: {"history": [names[(7 * i + j) % len(names)] for j in range(HISTORY)]}
    return bodies


def _chat(seed: int, tokens: int) -> dict[str, Any]:
    return {"prompt": "def ", "max_tokens": tokens, "ignore_eos": True, "temperature": 1.0, "seed": seed, "stream": True}


def figures(folder: Path, name: str, hour_s: float, leases: list[Lease]) -> dict[str, Any]:
    """What came of a service's wave: its requests, and the first slot that it was lent (None where there was none)."""
    answers = read_lines(answers_file(folder, name))
    first_s = sorted(row["first_s"] for row in answers)
    peak = [hour + SHAPES[name].begins_h for hour in (PEAK.start, PEAK.stop)]
    loan = next((lease for lease in leases if lease.role == name and lease.until is not None), None)
    asked = [lease.asked for lease in leases if loan and lease.slot == loan.slot and lease.ended == loan.since]
    switch_s = loan.ready - asked[0] if loan and loan.ready and asked and asked[0] else None
    return {
        "requests": len(answers), "accepted_lost": sum(row["lost"] for row in answers),
        "sent_again": sum(row["sent"] - 1 for row in answers),
        "first_token_s": {"p50": first_s[len(first_s) // 2], "p95": first_s[len(first_s) * 95 // 100]},
        "demand": sum(peak[0] * hour_s <= row["came"] < peak[1] * hour_s for row in answers),
        "switch_seconds": switch_s, "lost_work_s": loan.lost_s if loan else None,
    }  # fmt: skip


def read_measured(file: Path) -> Measured:
    """What `measured.json` holds."""
    return convert(json.loads(file.read_text()), Measured)
