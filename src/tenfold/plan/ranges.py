"""A figure with its low and high ends: every amount of money, power, carbon and water in a plan is one."""

from __future__ import annotations

from dataclasses import dataclass

from tenfold.spec.errors import TenfoldError


@dataclass(frozen=True)
class Range:
    """`low <= mid <= high`. Arithmetic is that of intervals: the result holds whatever the operands may be.

    So a sum of ranges assumes that all are low together or high together; it is never too narrow. Operands are
    taken as unrelated: `x - x` is a range about zero.
    """

    low: float
    mid: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.mid <= self.high:
            raise TenfoldError(f"A range must rise from low over mid to high, not {self.low}, {self.mid}, {self.high}.")

    @classmethod
    def of(cls, value: Range | float | list[float] | tuple[float, ...]) -> Range:
        """A number without spread, `[low, mid, high]` as data files write it, or a Range as it is."""
        if isinstance(value, Range):
            return value
        if isinstance(value, (list, tuple)):
            return cls(*(float(v) for v in value))
        return cls(float(value), float(value), float(value))

    def __add__(self, other: Range | float) -> Range:
        other = Range.of(other)
        return Range(self.low + other.low, self.mid + other.mid, self.high + other.high)

    __radd__ = __add__

    def __neg__(self) -> Range:
        return Range(-self.high, -self.mid, -self.low)

    def __sub__(self, other: Range | float) -> Range:
        return self + -Range.of(other)

    def __rsub__(self, other: float) -> Range:
        return Range.of(other) + -self

    def __mul__(self, other: Range | float) -> Range:
        other = Range.of(other)
        ends = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return Range(min(ends), self.mid * other.mid, max(ends))

    __rmul__ = __mul__

    def __truediv__(self, other: Range | float) -> Range:
        other = Range.of(other)
        if other.low <= 0 <= other.high:
            raise TenfoldError(f"Cannot divide by the range {other.low} to {other.high}: it holds zero.")
        return self * Range(1 / other.high, 1 / other.mid, 1 / other.low)

    def __rtruediv__(self, other: float) -> Range:
        return Range.of(other) / self

    def clip(self, low: float, high: float) -> Range:
        """The part between two limits, as where a share cannot pass 1."""
        return Range(*(min(high, max(low, v)) for v in (self.low, self.mid, self.high)))


def total(ranges: list[Range]) -> Range:
    """The sum; zero where there is none."""
    return sum(ranges, Range(0.0, 0.0, 0.0))
