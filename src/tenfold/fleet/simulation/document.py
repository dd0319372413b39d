"""A comparison of policies as a document of plain JSON values, which the console shows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenfold.fleet.simulation.outcome import Outcome, Row
from tenfold.spec.versions import read_document

VERSION, SUFFIX = 1, ".simulation.json"


def document(title: str, means: Mapping[str, Mapping[str, Any]], out: Mapping[str, Outcome]) -> dict[str, Any]:
    """By policy: the means of its figures over seeds, and one run's busiest day, as columns of samples and as moves.

    `day_begins_s` are seconds from the start of the simulation to that day; `at_h` and `at_s` are from the same start.
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
    """A written document. Raises TenfoldError where it is missing, damaged, or of another version."""
    return read_document(path, VERSION, "write it again by `tenfold fleet simulate --out`")
