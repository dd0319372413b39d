"""The role of each slot over time, as spans computed from the leases of a ledger."""

from collections.abc import Sequence
from typing import NamedTuple

from tenfold.fleet.ledger import Lease

SWITCHING = "switching"


class Span(NamedTuple):
    """`slot` works for the role `what`, or is `switching`, from `start` to `end`, in seconds since the beginning of the period."""

    slot: str
    what: str
    start: float
    end: float


def spans_of(leases: Sequence[Lease], began: float, seconds: float) -> list[Span]:
    """The spans of all slots in the `seconds` after `began`. A slot is switching until its role is ready, and again from the time
    at which the role is told to leave."""
    found = []
    for lease in leases:
        ended = began + seconds if lease.ended is None else lease.ended
        asked = ended if lease.asked is None else min(lease.asked, ended)
        ready = asked if lease.ready is None else min(lease.ready, asked)
        parts = ((SWITCHING, lease.since, ready), (lease.role, ready, asked), (SWITCHING, asked, ended))
        found += [Span(lease.slot, what, max(0.0, start - began), min(seconds, end - began)) for what, start, end in parts]
    return [span for span in found if span.end > span.start]
