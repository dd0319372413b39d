"""An uncertain figure: its best guess, and the 10 and 90 % quantiles of joint draws."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import ndtri

from tenfold.spec.errors import TenfoldError

DRAWS = 2048
Z90 = 1.2815515655446004  # the normal distribution's 90 % quantile


@lru_cache(maxsize=512)
def normal_draws(name: str) -> np.ndarray:
    """Standard normal draws [DRAWS] of the unknown `name`, the same at every call; unknowns of different names are independent.

    The draws are stratified, so that the quantiles of a single unknown are exact.
    """
    order = np.random.default_rng(zlib.crc32(name.encode())).permutation(DRAWS)
    return np.asarray(ndtri((order + 0.5) / DRAWS))


@dataclass(frozen=True, init=False, eq=False)
class Range:
    """`low <= mid <= high`: 10 % quantile, best guess, 90 % quantile; an 80 % interval.

    `mid` is computed from the best guesses of all inputs; `low` and `high` from `draws`, in which figures that depend on the same
    unknown move together. A figure given by its three numbers is an unknown of its own: log-normal on either side of mid where low
    is above zero, otherwise normal on either side, and cut off at zero where low is zero.
    """

    low: float
    mid: float
    high: float
    draws: np.ndarray

    def __init__(self, low: float, mid: float, high: float, name: str = "") -> None:
        if not low <= mid <= high:
            raise TenfoldError(f"A range must rise from low over mid to high, not {low}, {mid}, {high}.")
        self._set(low, mid, high, _drawn(low, mid, high, name or repr((low, mid, high))))

    def _set(self, low: float, mid: float, high: float, draws: np.ndarray) -> None:
        for name, value in (("low", float(low)), ("mid", float(mid)), ("high", float(high)), ("draws", draws)):
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, value: Range | float | list[float] | tuple[float, ...], name: str = "") -> Range:
        """A Range of a number (without spread) or of `[low, mid, high]`, as data files have it; a Range is returned as it is.

        Raises TenfoldError for a list of another length.
        """
        if isinstance(value, Range):
            return value
        if isinstance(value, (list, tuple)):
            if len(value) != 3:
                raise TenfoldError(f"The range {name or list(value)} needs three numbers: 10 %, middle and 90 %.")
            low, mid, high = value
            return cls(float(low), float(mid), float(high), name)
        return cls(float(value), float(value), float(value))

    @classmethod
    def of_draws(cls, mid: float, draws: np.ndarray) -> Range:
        """A figure of its best guess and its draws; a single draw means no spread."""
        low, high = np.quantile(draws, (0.1, 0.9)) if draws.size > 1 else (mid, mid)
        made = cls.__new__(cls)
        made._set(min(low, mid), mid, max(high, mid), draws)
        return made

    def quantile(self, level: float) -> float:
        """The value that the figure stays below with probability `level`."""
        return float(np.quantile(self.draws, level))

    def chance_within(self, limit: float) -> float:
        """The probability that the figure is at most `limit`."""
        return float(np.mean(np.broadcast_to(self.draws, DRAWS) <= limit))

    def ends(self) -> dict[str, float]:
        return {"low": self.low, "mid": self.mid, "high": self.high}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Range) and self.ends() == other.ends()

    def __hash__(self) -> int:
        return hash((self.low, self.mid, self.high))

    def __add__(self, other: Range | float) -> Range:
        return apply(np.add, self, other)

    def __radd__(self, other: float) -> Range:
        return self + other

    def __neg__(self) -> Range:
        return apply(np.negative, self)

    def __sub__(self, other: Range | float) -> Range:
        return apply(np.subtract, self, other)

    def __rsub__(self, other: float) -> Range:
        return apply(np.subtract, other, self)

    def __mul__(self, other: Range | float) -> Range:
        return apply(np.multiply, self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Range | float) -> Range:
        other = Range.of(other)
        if min(other.low, other.draws.min()) <= 0 <= max(other.high, other.draws.max()):
            raise TenfoldError(f"Cannot divide by the range {other.low} to {other.high}, which holds zero: give one above zero.")
        return apply(np.divide, self, other)

    def __rtruediv__(self, other: float) -> Range:
        return Range.of(other) / self

    def clip(self, low: float, high: float) -> Range:
        """The figure limited to `low` and `high`, as for a share that cannot exceed 1."""
        return apply(lambda value: np.clip(value, low, high), self)


def _drawn(low: float, mid: float, high: float, name: str) -> np.ndarray:
    if low == mid == high:
        return np.array([mid], dtype=float)
    z = normal_draws(name) / Z90
    if low > 0:
        return np.asarray(mid * np.exp(np.where(z < 0, z * np.log(mid / low), z * np.log(high / mid))))
    drawn = mid + np.where(z < 0, z * (mid - low), z * (high - mid))
    return np.asarray(np.maximum(drawn, 0.0) if low == 0 else drawn)


def apply(function: Callable[..., Any], *figures: Range | float) -> Range:
    """Apply an elementwise numpy function to the best guesses of the figures, and to their draws."""
    known = [Range.of(f) for f in figures]
    return Range.of_draws(float(function(*(k.mid for k in known))), np.asarray(function(*(k.draws for k in known)), dtype=float))


def total(ranges: Iterable[Range]) -> Range:
    """The sum of the ranges; zero for none."""
    return sum(ranges, Range(0.0, 0.0, 0.0))
