"""The record of forecasts: every forecast that was made in a home, frozen before its outcome is known, and the outcome.

`forecasts.jsonl` in the home is append-only: a line for each forecast, and later one for its outcome. A forecast is never edited,
and only the first forecast and the first outcome under a key count. So a reader can count how often the intervals held.

Outcomes widen or narrow the intervals of later forecasts of the same maker and kind (`calibrated`); each forecast records the
factor.
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

LEVELS = (0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95)  # of the quantiles in every forecast
SHARES = (0.075, 0.1, 0.2, 0.25, 0.2, 0.1, 0.075)  # for each level: the share of the interval 0 to 1 that is nearest to it
FILE = "forecasts.jsonl"
VERSION = 1  # of each line
STATED = 4  # the width that the maker states weighs as much as this many outcomes
FARTHEST = 4.0  # the most standard deviations that one outcome counts as, so that an outlier does not widen all that follow
Z80 = NormalDist().inv_cdf(0.9)  # half the width of an 80 % interval, in standard deviations


class Learnt(Struct, frozen=True):
    """How earlier outcomes changed a forecast: `factor` is how many times as wide its intervals are, from so many `outcomes`."""

    factor: float = 1.0
    outcomes: int = 0


class Forecast(Struct, frozen=True, kw_only=True):
    """One forecast. `quantiles` are those at `LEVELS`, in `unit`; `data` maps each file that it was made from to its hash.

    `key` identifies it within its home (`climb/g1/loss`). `who` names its maker (`climb`, `plan`), `kind` the quantity (`loss`).
    `made` is the time of recording (ISO 8601, UTC). `learnt` is None until `calibrated` has been applied.
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
    """A forecast and its outcome, recorded at the time `came`; `measured` is None as long as there is none."""

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
        """The continuous ranked probability score in the forecast's unit, 0 at best; None without an outcome.

        It is twice the integral of the pinball loss over all levels (Gneiting and Raftery 2007, section 4.2), here a sum over
        `LEVELS` with the weights `SHARES`.
        """
        if self.measured is None:
            return None
        errors = [self.measured - q for q in self.forecast.quantiles]
        losses = [max(level * e, (level - 1) * e) for level, e in zip(LEVELS, errors, strict=True)]
        return 2 * sum(share * loss for share, loss in zip(SHARES, losses, strict=True))


def forecast(home: Path, made: Forecast) -> Forecast:
    """Record a forecast, after `calibrated`, and return it. If its key is in the record already, that forecast is returned instead.

    Raises TenfoldError for quantiles that are not finite or not in ascending order.
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
    """The forecast with its intervals widened or narrowed by the outcomes of the same maker and kind in this home.

    Let z be the number of standard deviations, as the maker stated them, between an outcome and its median. The factor is the root
    mean square of all z, in which the stated width counts as `STATED` outcomes with z = 1 (the variance of a normal distribution
    with a conjugate prior, in its form as pseudo-observations: Gelman et al., Bayesian Data Analysis, section 2.6). Without
    outcomes it is 1. A forecast that has `learnt` already is returned unchanged.
    """
    if made.learnt is not None:
        return made
    past = [one for one in read_forecasts(home) if (one.forecast.who, one.forecast.kind) == (made.who, made.kind)]
    found = [z for one in past if (z := _deviations(one)) is not None]
    factor = math.sqrt((STATED + sum(z * z for z in found)) / (STATED + len(found)))
    return structs.replace(made, quantiles=widened(made.quantiles, made.median, factor), learnt=Learnt(factor, len(found)))


def widened(values: Sequence[float], median: float, factor: float) -> tuple[float, ...]:
    """Quantiles `factor` times as far from their median; in logarithms if all are positive."""
    if min(*values, median) > 0:
        return tuple(median * (value / median) ** factor for value in values)
    return tuple(median + factor * (value - median) for value in values)


def _deviations(one: Scored) -> float | None:
    """The distance of an outcome from its median, in standard deviations of the interval that its maker stated; None without an
    outcome, or for an interval without width."""
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
    """Record the outcome of a forecast. The same outcome again changes nothing.

    Raises TenfoldError if there is no such forecast, or if it has another outcome.
    """
    if not math.isfinite(measured):
        raise TenfoldError(f"The outcome of the forecast {key!r} is {measured}: only a finite number can be recorded.")
    with _locked(home):
        known = {one.forecast.key: one for one in read_forecasts(home)}
        if key not in known:
            raise TenfoldError(f"There is no forecast {key!r} in {home / FILE}: record the forecast before its outcome.")
        before = known[key]
        if before.measured is not None and before.measured != measured:
            raise TenfoldError(f"The forecast {key!r} has its outcome already ({before.measured:g}): it is never changed.")
        if before.measured is None:
            before = structs.replace(before, measured=float(measured), came=_now())
            _append(home, {"outcome": {"key": key, "measured": before.measured, "came": before.came}})
    return before


def read_forecasts(home: Path) -> list[Scored]:
    """Every forecast of a home with its outcome, in the order in which they were made."""
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
    """Quantiles of a log-normal forecast, for positive quantities; `relative_sd` is the standard deviation of the logarithm."""
    return tuple(median * math.exp(relative_sd * NormalDist().inv_cdf(level)) for level in LEVELS)


def normal(mean: float, sd: float) -> tuple[float, ...]:
    """Quantiles of a normal forecast."""
    return tuple(mean + sd * NormalDist().inv_cdf(level) for level in LEVELS)


def of_samples(samples: Sequence[float]) -> tuple[float, ...]:
    """Quantiles of samples, interpolated linearly between the order statistics."""
    ordered = sorted(samples)
    places = [level * (len(ordered) - 1) for level in LEVELS]
    return tuple(ordered[int(p)] + (p % 1) * (ordered[min(int(p) + 1, len(ordered) - 1)] - ordered[int(p)]) for p in places)


def of_intervals(median: float, intervals: Mapping[str, Sequence[float]]) -> tuple[float, ...]:
    """Quantiles of a forecast given as a median with 50, 80 and 95 % intervals; the 5 and 95 % quantiles are interpolated."""
    sides = []
    for side in (0, 1):
        eighty, ninety_five = (intervals[level][side] for level in ("80", "95"))
        z80, z90, z95 = (NormalDist().inv_cdf(level) for level in (0.90, 0.95, 0.975))
        sides.append((eighty + (ninety_five - eighty) * (z90 - z80) / (z95 - z80), eighty, intervals["50"][side]))
    (q05, q10, q25), (q95, q90, q75) = sides
    return (q05, q10, q25, median, q75, q90, q95)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for row in read_lines(path):
        require_version(row.get("version", 1), (VERSION,), path, "use another --home")
        yield row


def _append(home: Path, row: dict[str, Any]) -> None:
    append_line(home / FILE, {"version": VERSION, **row}, to_disk=True)


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Let only one process write at a time."""
    with one_at_a_time(make_folder(home) / ".forecasts.lock", f"writing {home / FILE}", wait=True):
        yield


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
