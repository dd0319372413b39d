"""The record of forecasts: what every room said would come, frozen before it came, and what came.

`forecasts.jsonl` under the home only ever grows: a line for a forecast, and later one for its outcome. Nothing in it is edited,
and a second forecast or outcome under the same key is refused. So a reader can count how often the intervals held.

What came widens or narrows the next intervals of the same maker and kind (`calibrated`), and each forecast says how much it did.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import NormalDist
from typing import Any

from msgspec import Struct, convert, structs, to_builtins

from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import append_line, make_folder, one_at_a_time, read_lines
from tenfold.spec.versions import require_version

LEVELS = (0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95)
SHARES = (0.075, 0.1, 0.2, 0.25, 0.2, 0.1, 0.075)  # of all levels, those nearer to each quantile than to its neighbours
FILE = "forecasts.jsonl"
VERSION = 1  # of each line
STATED = 4  # outcomes that the width which a maker states counts for
FARTHEST = 4.0  # of the deviations that a forecast gave, which its outcome counts for at most, lest one widens all that follow
Z80 = NormalDist().inv_cdf(0.9)


class Learnt(Struct, frozen=True):
    """What earlier outcomes did to a forecast: its intervals are `factor` times as wide as its maker stated, by `outcomes`."""

    factor: float = 1.0
    outcomes: int = 0


class Forecast(Struct, frozen=True, kw_only=True):
    """One forecast. `quantiles` are those of `LEVELS`, in `unit`; `data` has the hash of each file that it was made from.

    `key` names it within its home: who makes it and of what (`climb/g1/loss`). `kind` groups keys in the scores (`loss`).
    `learnt` is None as long as its maker states the quantiles and nothing was learnt from outcomes.
    """

    key: str
    who: str
    kind: str
    unit: str
    quantiles: tuple[float, ...]
    data: dict[str, str] = {}
    made: str = ""
    learnt: Learnt | None = None

    @property
    def median(self) -> float:
        return self.quantiles[LEVELS.index(0.5)]


class Scored(Struct, frozen=True, kw_only=True):
    """A forecast and what came, where it has: `measured` is None until then."""

    forecast: Forecast
    measured: float | None = None
    came: str = ""

    @property
    def inside_80(self) -> bool | None:
        """Whether the outcome lies between the 10 % and the 90 % quantile."""
        q = dict(zip(LEVELS, self.forecast.quantiles, strict=True))
        return None if self.measured is None else q[0.10] <= self.measured <= q[0.90]

    @property
    def crps(self) -> float | None:
        """The continuous ranked probability score in the forecast's unit, 0 at best: twice the pinball loss over all levels
        (Gneiting and Raftery 2007, section 4.2), here summed over the quantiles that there are."""
        if self.measured is None:
            return None
        errors = [self.measured - q for q in self.forecast.quantiles]
        losses = [max(level * e, (level - 1) * e) for level, e in zip(LEVELS, errors, strict=True)]
        return 2 * sum(share * loss for share, loss in zip(SHARES, losses, strict=True))


def forecast(home: Path, made: Forecast) -> Forecast:
    """Write a forecast down, `calibrated`, before its outcome is known. One that stands under its key is returned as it is.

    Raises TenfoldError for quantiles that do not rise, or are no numbers.
    """
    if len(made.quantiles) != len(LEVELS) or not all(map(math.isfinite, made.quantiles)):
        raise TenfoldError(f"The forecast {made.key!r} needs {len(LEVELS)} finite quantiles, not {made.quantiles}.")
    if list(made.quantiles) != sorted(made.quantiles):
        raise TenfoldError(f"The quantiles of the forecast {made.key!r} must rise: {made.quantiles}.")
    with _locked(home):
        standing = {one.forecast.key: one.forecast for one in read_forecasts(home)}
        if made.key not in standing:
            standing[made.key] = structs.replace(calibrated(home, made), made=_now())
            _append(home, {"forecast": to_builtins(standing[made.key])})
    return standing[made.key]


def calibrated(home: Path, made: Forecast) -> Forecast:
    """The forecast with intervals as wide as outcomes of the same maker and kind in this home ask for; once, and not again.

    Each outcome lies some standard deviations z from its median, by the width that its maker stated. The factor is the root of
    the mean of z squared, in which the stated width counts for `STATED` outcomes with z = 1 (the posterior mean of a normal
    scale, by its prior's pseudo-observations: Gelman et al., Bayesian Data Analysis, section 2.6). Without outcomes it is 1.
    """
    if made.learnt is not None:
        return made
    past = [one for one in read_forecasts(home) if (one.forecast.who, one.forecast.kind) == (made.who, made.kind)]
    found = [z for one in past if (z := _deviations(one)) is not None]
    factor = math.sqrt((STATED + sum(z * z for z in found)) / (STATED + len(found)))
    return structs.replace(made, quantiles=widened(made.quantiles, made.median, factor), learnt=Learnt(factor, len(found)))


def widened(values: Sequence[float], median: float, factor: float) -> tuple[float, ...]:
    """Quantiles so many times as far from their median, in logarithms where all are positive."""
    if min(*values, median) > 0:
        return tuple(median * (value / median) ** factor for value in values)
    return tuple(median + factor * (value - median) for value in values)


def _deviations(one: Scored) -> float | None:
    """How many standard deviations an outcome lies from its median, by the interval that its maker stated; None where that has
    no width, or nothing came."""
    if one.measured is None:
        return None
    low, median, high = (one.forecast.quantiles[LEVELS.index(level)] for level in (0.1, 0.5, 0.9))
    off, below, above = one.measured - median, median - low, high - median
    if min(*one.forecast.quantiles, one.measured) > 0:
        off, below, above = math.log(one.measured / median), math.log(median / low), math.log(high / median)
    width = above if off > 0 else below
    factor = one.forecast.learnt.factor if one.forecast.learnt else 1.0
    return min(Z80 * abs(off) / width, FARTHEST) * factor if width > 0 else None


def outcome(home: Path, key: str, measured: float) -> Scored:
    """Add what came of a forecast, once. The same outcome again changes nothing.

    Raises TenfoldError where there is no such forecast, or another outcome stands.
    """
    with _locked(home):
        known = {one.forecast.key: one for one in read_forecasts(home)}
        if key not in known:
            raise TenfoldError(f"There is no forecast {key!r} in {home / FILE}: make it before its outcome.")
        before = known[key]
        if before.measured is not None and before.measured != measured:
            raise TenfoldError(f"The forecast {key!r} has its outcome already ({before.measured:g}): it is never changed.")
        if before.measured is None:
            before = structs.replace(before, measured=float(measured), came=_now())
            _append(home, {"outcome": {"key": key, "measured": before.measured, "came": before.came}})
    return before


def read_forecasts(home: Path) -> list[Scored]:
    """Every forecast of a home with what came of it, in the order in which they were made."""
    found: dict[str, Scored] = {}
    for line in _lines(home / FILE):
        if "forecast" in line:
            made = convert(line["forecast"], Forecast)
            found.setdefault(made.key, Scored(forecast=made))
        elif "outcome" in line and line["outcome"]["key"] in found:
            came = line["outcome"]
            found[came["key"]] = structs.replace(found[came["key"]], measured=came["measured"], came=came["came"])
    return list(found.values())


def around(median: float, relative_sd: float) -> tuple[float, ...]:
    """Quantiles of a log-normal forecast, for what cannot be negative."""
    return tuple(median * math.exp(relative_sd * NormalDist().inv_cdf(level)) for level in LEVELS)


def normal(mean: float, sd: float) -> tuple[float, ...]:
    """Quantiles of a normal forecast."""
    return tuple(mean + sd * NormalDist().inv_cdf(level) for level in LEVELS)


def of_samples(samples: Sequence[float]) -> tuple[float, ...]:
    """Quantiles of what was drawn or resampled, linear between the order statistics."""
    ordered = sorted(samples)
    places = [level * (len(ordered) - 1) for level in LEVELS]
    return tuple(ordered[int(p)] + (p % 1) * (ordered[min(int(p) + 1, len(ordered) - 1)] - ordered[int(p)]) for p in places)


def of_intervals(median: float, intervals: Mapping[str, Sequence[float]]) -> tuple[float, ...]:
    """Quantiles of a forecast that is given as a median with 50, 80 and 95 % intervals; those of 5 and 95 % lie between."""
    sides = []
    for side in (0, 1):
        eighty, ninety_five = (intervals[level][side] for level in ("80", "95"))
        z80, z90, z95 = (NormalDist().inv_cdf(level) for level in (0.90, 0.95, 0.975))
        sides.append((eighty + (ninety_five - eighty) * (z90 - z80) / (z95 - z80), eighty, intervals["50"][side]))
    (q05, q10, q25), (q95, q90, q75) = sides
    return (q05, q10, q25, median, q75, q90, q95)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for row in read_lines(path):
        require_version(row.get("version", 1), (VERSION,), path, "keep other forecasts in another --home")
        yield row


def _append(home: Path, row: dict[str, Any]) -> None:
    append_line(home / FILE, {"version": VERSION, **row}, to_disk=True)


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """One process at a time writes."""
    with one_at_a_time(make_folder(home) / ".forecasts.lock", f"writing {home / FILE}", wait=True):
        yield


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
