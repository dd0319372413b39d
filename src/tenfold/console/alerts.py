"""What needs somebody's attention."""

from pathlib import Path

from msgspec import Struct


class Alert(Struct, frozen=True):
    """A sentence about what is wrong, and the place of the page that shows it, such as `#/run/g1`."""

    kind: str
    sentence: str
    place: str


def alerts(home: Path, fleet: Path | None = None) -> list[Alert]:
    """All that is wrong now in a home and its fleet."""
    return []
