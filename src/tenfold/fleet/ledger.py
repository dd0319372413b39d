"""The ledger: who holds which slot, since when, until when and why, and what a loan cost its owner.

SQLite (WAL, synced at every write) or PostgreSQL, through SQLAlchemy. Rows are only added. Each lease names its predecessor, and a
unique constraint lets no two leases have the same one: the database itself guarantees that a slot has exactly one lease at a time.
Ids are never reused. The view `current_leases` has the leases without a successor.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    from sqlalchemy import (
        DDL,
        Column,
        Connection,
        Engine,
        Float,
        ForeignKey,
        Integer,
        MetaData,
        String,
        Table,
        Text,
        UniqueConstraint,
        create_engine,
        event,
        func,
        insert,
        select,
        text,
    )
    from sqlalchemy.exc import IntegrityError, SQLAlchemyError
    from sqlalchemy.pool import StaticPool
except ImportError:
    from tenfold.spec.errors import NotInstalled

    raise NotInstalled("The ledger of a fleet needs SQLAlchemy: pip install 'tenfold[fleet]'.") from None

from tenfold.spec.errors import TenfoldError

metadata = MetaData()
slots = Table("slots", metadata, Column("name", String(200), primary_key=True), Column("owner", String(200), nullable=False))
leases = Table(
    "leases",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("slot", String(200), ForeignKey("slots.name"), nullable=False, index=True),
    Column("follows", Integer, nullable=False),  # the id of the lease before; 0 for the first lease of a slot
    Column("role", String(200), nullable=False),
    Column("since", Float, nullable=False),
    Column("until", Float),
    Column("work", String(200)),
    Column("why", Text, nullable=False),
    UniqueConstraint("slot", "follows"),
    sqlite_autoincrement=True,
)
notes = Table(
    "notes",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("lease", Integer, ForeignKey("leases.id"), nullable=False, index=True),
    Column("name", String(20), nullable=False),
    Column("value", Float, nullable=False),
    sqlite_autoincrement=True,
)
finished = Table("finished", metadata, Column("work", String(200), primary_key=True), Column("at", Float, nullable=False))
CURRENT = "SELECT * FROM leases l WHERE NOT EXISTS (SELECT 1 FROM leases n WHERE n.slot = l.slot AND n.follows = l.id)"
VIEW = DDL(f"CREATE VIEW current_leases AS {CURRENT}")
event.listen(leases, "after_create", VIEW)


@dataclass(frozen=True)
class Lease:
    """`role` has `slot` from `since` until `until`, which is None where the role is the slot's owner. `work` names the job, if any.

    The role works from `ready`, is told to leave at `asked`, and is gone at `ended`. `lost_s` is what a loan cost the owner:
    seconds of stopping, starting and repeated work. The id is the worker's fencing token: of two leases of a slot, the one with the
    higher id is the later one."""

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
    work: str | None = None


@dataclass(frozen=True)
class Turn:
    """The next lease of a slot, to be written to the ledger."""

    slot: str
    role: str
    until: float | None = None
    why: str = ""
    work: str | None = None


class Ledger:
    """A database with one writer. `owners` maps slots to owners: those that the ledger does not have yet are added, from `now` on.

    Raises TenfoldError where the database cannot be used.
    """

    def __init__(self, where: Path | str, owners: dict[str, str] | None = None, now: float = 0.0):
        self._lock, self.engine = threading.RLock(), _engine(str(where))
        try:
            metadata.create_all(self.engine)
            with self.engine.begin() as connection:
                known = {row.name for row in connection.execute(select(slots))}
                for slot, owner in (owners or {}).items():
                    if slot not in known:
                        connection.execute(insert(slots).values(name=slot, owner=owner))
                        values = {"slot": slot, "follows": 0, "role": owner, "since": now, "why": "its own"}
                        connection.execute(insert(leases).values(values))
            with self._reading() as connection:
                self.owners: dict[str, str] = {row.name: row.owner for row in connection.execute(select(slots))}
        except SQLAlchemyError as error:
            raise TenfoldError(f"The ledger {where} cannot be used: {_reason(error)}.") from None

    def leases(self, current: bool = False) -> list[Lease]:
        """All leases in the order in which they began; with `current` only those that have not ended."""
        with self._lock, self._reading() as connection:
            rows = [
                row._mapping
                for row in connection.execute(text(f"SELECT * FROM {'current_leases' if current else 'leases'} ORDER BY id"))
            ]
            said: dict[int, dict[str, float]] = {}
            ids = [row["id"] for row in rows]
            chosen = select(notes).where(notes.c.lease.in_(ids)) if current else select(notes)
            for note in connection.execute(chosen.order_by(notes.c.id)):
                said.setdefault(note.lease, {})[note.name] = note.value
        ended = {row["follows"]: row["since"] for row in rows}
        return [_lease(row, said.get(row["id"], {}), ended.get(row["id"])) for row in rows]

    def of(self, slot: str) -> Lease:
        """The slot's current lease."""
        return next(lease for lease in self.leases(current=True) if lease.slot == slot)

    def turn(self, slot: str, role: str, until: float | None, why: str, now: float) -> None:
        """End the slot's lease and begin the next one in the same transaction."""
        self.turn_all([Turn(slot, role, until, why)], now)

    def turn_all(self, turns: Sequence[Turn], now: float, gone: bool = True) -> None:
        """Begin the next leases of several slots in one transaction: all of them or none.

        `gone` says that the slots' previous workers were seen to end. Without it, a slot on loan is given to the next role only
        after its deadline, when its worker stops itself, and a slot that its owner holds is not given at all.

        Raises TenfoldError where a worker may still run, for work that is finished, for a slot that the ledger does not have, and
        where another writer changed one of the slots at the same time.
        """
        with self._lock:
            try:
                with self.engine.begin() as connection:
                    done = {row.work for row in connection.execute(select(finished.c.work))}
                    for turn in turns:
                        if turn.work is not None and turn.work in done:
                            raise TenfoldError(f"{turn.work} was finished: it does not run again.")
                        before = connection.execute(
                            select(leases.c.id, leases.c.until)
                            .where(leases.c.slot == turn.slot)
                            .order_by(leases.c.id.desc())
                            .limit(1)
                        ).one_or_none()
                        if before is None:
                            raise TenfoldError(f"The ledger has no slot {turn.slot!r}.")
                        if not gone and (before.until is None or now < before.until):
                            when = "it was seen to leave" if before.until is None else f"its deadline at {before.until:.0f}"
                            raise TenfoldError(f"The worker in {turn.slot} may still run: it is given again after {when}.")
                        values = {"slot": turn.slot, "follows": before.id, "role": turn.role, "since": now, "until": turn.until}
                        connection.execute(insert(leases).values(**values, work=turn.work, why=turn.why))
            except IntegrityError:
                raise TenfoldError("Another controller turned a slot at the same time: a fleet has one.") from None

    def note(self, lease: int, **times: float) -> None:
        """Write `ready`, `asked` or `lost_s` of a lease. Of several values the last one counts."""
        with self._lock, self.engine.begin() as connection:
            for name, value in times.items():
                connection.execute(insert(notes).values(lease=lease, name=name, value=value))

    def finish(self, work: str, now: float) -> None:
        """Mark work as finished; a second call changes nothing."""
        with self._lock, self.engine.begin() as connection:
            if not connection.execute(select(func.count()).where(finished.c.work == work)).scalar():
                connection.execute(insert(finished).values(work=work, at=now))

    def finished(self) -> set[str]:
        """The names of finished work."""
        with self._lock, self._reading() as connection:
            return {row.work for row in connection.execute(select(finished.c.work))}

    def close(self) -> None:
        self.engine.dispose()

    def _reading(self) -> Connection:
        """A connection that does not take the writer's lock."""
        return self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")


def _engine(where: str) -> Engine:
    if "://" in where:
        return create_engine(where)
    memory: dict[str, Any] = {"poolclass": StaticPool} if where == ":memory:" else {}
    engine = create_engine(f"sqlite:///{where}", connect_args={"check_same_thread": False, "timeout": 60}, **memory)

    @event.listens_for(engine, "connect")
    def durable(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions: `at_once` does
        connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")

    @event.listens_for(engine, "begin")
    def at_once(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _lease(row: Any, said: dict[str, float], ended: float | None) -> Lease:
    times = said.get("ready"), said.get("asked"), ended, said.get("lost_s")
    return Lease(row["id"], row["slot"], row["role"], row["since"], row["until"], row["why"], *times, work=row["work"])


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().split("\n")[0].rstrip(".")
