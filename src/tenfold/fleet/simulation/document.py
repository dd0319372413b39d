"""A comparison of policies as a document of plain JSON values, which the console shows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenfold.fleet.simulation.outcome import Outcome, Row
from tenfold.spec.versions import read_document

VERSION, SUFFIX = 1, ".simulation.json"


def document(title: str, means: Mapping[str, Mapping[str, Any]], out: Mapping[str, Outcome]) -> dict[str, Any]:
    """For each policy: its figures' means over seeds, and the busiest day of one run, as columns of samples and as moves.

    `day_begins_s` is the beginning of that day; it, `at_h` and `at_s` are counted from the start of the simulation.
    """
    days = {
        name: {
            "columns": dict(zip(Row._fields, zip(*one.day(), strict=True), strict=True)),
            "moves": [move._asdict() for move in one.busiest],
        }
        for name, one in out.items()
    }
    begins = next(iter(out.values())).busiest_s
    return {"version": VERSION, "title": title, "day_begins_s": begins, "means": means, "days": days}


def read_simulation(path: Path) -> dict[str, Any]:
    """Read a document. Raises TenfoldError where it is missing, damaged, or of another version."""
    return read_document(path, VERSION, "write it again by `tenfold fleet simulate --out`")
