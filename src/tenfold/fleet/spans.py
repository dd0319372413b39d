"""What slots did, as spans of time, from the leases of a ledger."""

from collections.abc import Sequence
from typing import NamedTuple

from tenfold.fleet.ledger import Lease

SWITCHING = "switching"


class Span(NamedTuple):
    """`slot` does `what`, a role or `switching`, from `start` to `end`, in seconds of the day."""

    slot: str
    what: str
    start: float
    end: float


def spans_of(leases: Sequence[Lease], began: float, seconds: float) -> list[Span]:
    """What the slots did in the `seconds` after `began`. A slot that is told to leave, or was not ready yet, is switching."""
    found = []
    for lease in leases:
        ended = began + seconds if lease.ended is None else lease.ended
        asked = ended if lease.asked is None else min(lease.asked, ended)
        ready = asked if lease.ready is None else min(lease.ready, asked)
        parts = ((SWITCHING, lease.since, ready), (lease.role, ready, asked), (SWITCHING, asked, ended))
        found += [Span(lease.slot, what, max(0.0, start - began), min(seconds, end - began)) for what, start, end in parts]
    return [span for span in found if span.end > span.start]
