"""The news of a run since the last poll, for pages that follow it."""

import time
from pathlib import Path
from typing import Any

from tenfold.console.runs.document import RECORDS, latest, spent
from tenfold.console.runs.find import FILE, state
from tenfold.console.runs.record import FIELDS
from tenfold.console.runs.thin import thinned

BINS = 50  # into which the new steps of one poll are thinned
SPENT_EVERY_S = 15.0  # how often the use of time is sent


class Follow:
    """A poll of a `Feed`: a call returns the logged steps since the last call and the run's state, or None where nothing changed.

    `after` is the number of steps before them, and `replaced` counts how often the file was replaced. A page that has fewer steps
    or another count loads the run's document again; so it does when the news has `events` other than steps, or another `state`.
    """

    def __init__(self, home: Path, name: str):
        self._home, self._name, self._folder = home, name, home / name
        self._known: tuple[int, int, int] | None = None  # (replaced, number of steps, number of other events)
        self._state = ""
        self._spent_at = time.monotonic()

    def __call__(self) -> dict[str, Any] | None:
        record = RECORDS.read(self._folder / FILE)
        rows, events = record.rows, len(record.events)
        before, self._known = self._known, (record.replaced, len(rows), events)
        was, self._state = self._state, state(self._folder, record.last_kind)
        if before == self._known and was == self._state:
            return None
        fresh = before is None or before[0] != record.replaced
        after = len(rows) if before is None or fresh else before[1]
        news: dict[str, Any] = {"replaced": record.replaced, "after": after, "rows": len(rows), "state": self._state}
        news["latest"] = latest(self._name, record)
        news |= thinned(rows[after:], FIELDS, BINS)
        if before is not None and (fresh or events != before[2]):
            news["events"] = True
        if time.monotonic() > self._spent_at + SPENT_EVERY_S:
            self._spent_at = time.monotonic()
            news["spent"] = spent(self._home, self._name)
        return news
