"""The ledger: who holds which slot, since when, until when and why, and what a loan cost its owner.

SQLite (WAL, synced at every write) or PostgreSQL, through SQLAlchemy. Rows are only added. A lease names the one that it follows,
and no two may follow the same: so a slot is on exactly one lease at a time, which the database itself sees to. Ids are never used
again. The view `current_leases` has those that nothing follows.
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
    Column("follows", Integer, nullable=False),  # 0: it is the slot's first
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
    """`role` has `slot` from `since`, as its owner where `until` is None, for `work` where it is said.

    It works from `ready`, is told to leave at `asked`, and is gone at `ended`. `lost_s` of a loan are the owner's seconds of
    stopping, starting and work done again. The id is the fencing token of its worker: a higher one of the same slot came later."""

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
    """The next lease of a slot."""

    slot: str
    role: str
    until: float | None = None
    why: str = ""
    work: str | None = None


class Ledger:
    """One database, one writer. `owners` are the slots with their owners, for a ledger that is new."""

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
        """Every lease in the order in which they began, or those that have not ended."""
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
        """The slot's lease."""
        return next(lease for lease in self.leases(current=True) if lease.slot == slot)

    def turn(self, slot: str, role: str, until: float | None, why: str, now: float) -> None:
        """End the slot's lease, and begin the next in the same transaction."""
        self.turn_all([Turn(slot, role, until, why)], now)

    def turn_all(self, turns: Sequence[Turn], now: float, gone: bool = True) -> None:
        """Turn a gang of slots, all or none.

        Where nobody saw the workers before them `gone`, a loan's slot is given again only when its deadline has come, at which its
        worker stops itself; an owner's only when it was seen.

        Raises TenfoldError for that, for work that was finished, and where another writer turned a slot at the same time.
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
        """Say `ready`, `asked` or `lost_s` of a lease; what is said last holds."""
        with self._lock, self.engine.begin() as connection:
            for name, value in times.items():
                connection.execute(insert(notes).values(lease=lease, name=name, value=value))

    def finish(self, work: str, now: float) -> None:
        """Say that work is done, once."""
        with self._lock, self.engine.begin() as connection:
            if not connection.execute(select(func.count()).where(finished.c.work == work)).scalar():
                connection.execute(insert(finished).values(work=work, at=now))

    def finished(self) -> set[str]:
        """The work that is done."""
        with self._lock, self._reading() as connection:
            return {row.work for row in connection.execute(select(finished.c.work))}

    def close(self) -> None:
        self.engine.dispose()

    def _reading(self) -> Connection:
        """A connection that takes no lock of a writer."""
        return self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")


def _engine(where: str) -> Engine:
    if "://" in where:
        return create_engine(where)
    memory: dict[str, Any] = {"poolclass": StaticPool} if where == ":memory:" else {}
    engine = create_engine(f"sqlite:///{where}", connect_args={"check_same_thread": False, "timeout": 60}, **memory)

    @event.listens_for(engine, "connect")
    def durable(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy's own BEGIN below, not the driver's
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
