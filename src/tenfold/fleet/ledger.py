"""The ledger: who holds which slot, since when, until when and why, and what a loan cost its owner. SQLite, synced at every write.

Each slot is on exactly one lease at a time, which the database itself sees to; ids are never used again, and rows never deleted.
"""

import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

TABLES = """
CREATE TABLE IF NOT EXISTS slots (name TEXT PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (
    id INTEGER PRIMARY KEY AUTOINCREMENT, slot TEXT NOT NULL REFERENCES slots, role TEXT NOT NULL, since REAL NOT NULL, until REAL,
    why TEXT NOT NULL, ready REAL, asked REAL, ended REAL, lost_s REAL);
CREATE UNIQUE INDEX IF NOT EXISTS one_lease_a_slot ON leases (slot) WHERE ended IS NULL;
"""


@dataclass(frozen=True)
class Lease:
    """`role` has `slot` from `since`, as its owner where `until` is None. It works from `ready`, is told to leave at `asked`, and
    is gone at `ended`. `lost_s` of a loan are the owner's seconds of stopping, starting and work done again."""

    id: int
    slot: str
    role: str
    since: float
    until: float | None
    why: str
    ready: float | None
    asked: float | None
    ended: float | None
    lost_s: float | None


class Ledger:
    """One file, one writer. `owners` are the slots with their owners, for a ledger that is new."""

    def __init__(self, path: Path | str, owners: dict[str, str] | None = None, now: float = 0.0):
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;" + TABLES)
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for slot, owner in (owners or {}).items():
                if self._db.execute("INSERT OR IGNORE INTO slots VALUES (?, ?)", (slot, owner)).rowcount:
                    self._begin(slot, owner, None, "its own", now)
        self.owners: dict[str, str] = dict(self._db.execute("SELECT name, owner FROM slots"))

    def leases(self, current: bool = False) -> list[Lease]:
        """Every lease in the order in which they began, or those that have not ended."""
        with self._lock:
            rows = self._db.execute(f"SELECT * FROM leases {'WHERE ended IS NULL' if current else ''} ORDER BY id")
            return [Lease(*row) for row in rows]

    def of(self, slot: str) -> Lease:
        """The slot's lease."""
        return next(lease for lease in self.leases(current=True) if lease.slot == slot)

    def turn(self, slot: str, role: str, until: float | None, why: str, now: float) -> None:
        """End the slot's lease, and begin the next in the same transaction."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("UPDATE leases SET ended = ? WHERE slot = ? AND ended IS NULL", (now, slot))
            self._begin(slot, role, until, why, now)

    def note(self, lease: int, **times: float) -> None:
        """Set `ready`, `asked` or `lost_s` of a lease."""
        with self._lock:
            for name, value in times.items():
                self._db.execute(f"UPDATE leases SET {name} = ? WHERE id = ?", (value, lease))

    def close(self) -> None:
        self._db.close()

    def _begin(self, slot: str, role: str, until: float | None, why: str, now: float) -> None:
        values = slot, role, now, until, why
        self._db.execute("INSERT INTO leases (slot, role, since, until, why) VALUES (?, ?, ?, ?, ?)", values)
