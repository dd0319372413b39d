"""Quantities as people write them: `70B`, `24:00:00`, `1.23 GB`. In the code, a quantity's unit is in its name."""

import re

from tenfold.spec.errors import TenfoldError

_SI = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21, "y": 1e24}


def parse_quantity(text: str, what: str = "value") -> float:
    """Parse `"1e15"`, `"3.8e26"`, `"70B"`, `"1.5T"` or `"300k"` as a positive float.

    Raises TenfoldError, in which the value is called `what`, for any other text.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([kmbgtpezy]?)\s*", text.replace("_", "").lower())
    number = float(match[1]) * _SI[match[2]] if match else 0.0
    if number <= 0:
        raise TenfoldError(f"{what} must be a positive number such as 1e15 or 70B, not {text!r}.")
    return number


def parse_clock(text: str) -> int:
    """Parse a time as in Slurm, `"24:00:00"` or, with days, `"2-12:30:00"`, into seconds. Raises TenfoldError for other text."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d{1,3}):(\d\d):(\d\d)", text)
    if match is None:
        raise TenfoldError(f"The time limit {text!r} is not valid: write hours:minutes:seconds, such as 24:00:00.")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((24 * days + hours) * 60 + minutes) * 60 + seconds


def si(value: float, unit: str = "", digits: int = 3) -> str:
    """A number with an SI prefix and `digits` significant digits: `si(1.234e9, "tokens")` is `"1.23 Gtokens"`."""
    for exponent, prefix in ((24, "Y"), (21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**exponent:
            return f"{value / 10**exponent:.{digits}g} {prefix}{unit}".rstrip()
    return f"{value:.{digits}g} {unit}".rstrip()


def duration(seconds: float) -> str:
    """Seconds in units that are easy to read: `"48 s"`, `"3 min 20 s"`, `"5 h 12 min"`, `"3 d 4 h"`."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    minutes, s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {s} s"
    hours, m = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {m} min"
    return f"{hours // 24} d {hours % 24} h"
