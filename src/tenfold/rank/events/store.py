"""The event store in SQLite or PostgreSQL: which lists were shown to whom, and what users did.

A list is kept with the place and the propensity of each item, so that the reward of another policy can be estimated later. Users
are keyed hashes. Everything of a person can be deleted; the hash is remembered, so that their rows in other files are not used.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import JSON, Column, Float, Index, Integer, MetaData, Row, String, Table, select

from tenfold.rank.events.writer import Rows, Writer
from tenfold.serve.api.keys import ANYBODY
from tenfold.serve.feedback.database import Database, Kind
from tenfold.spec.errors import TenfoldError

VERSION = 1  # of the tables
metadata = MetaData()
KIND = Kind(metadata, VERSION, "event", "--events")
lists = Table(
    "lists",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("created", Float, nullable=False),
    Column("user_hash", String(64), index=True, nullable=False),
    Column("shown", JSON, nullable=False),  # the answer and the request, as in serving/asking.py
)
events = Table(
    "events",
    metadata,
    Column("id", String(160), primary_key=True),
    Column("created", Float, nullable=False),  # when the server got it, seconds since 1970
    Column("time", Float, nullable=False),  # when it happened, seconds since 1970
    Column("user_hash", String(64), nullable=False),
    Column("item", String(1000), nullable=False),
    Column("action", String(40), nullable=False),
    Column("value", Float),
    Column("list_id", String(80), index=True),
    Column("place", Integer),
    Index("events_of_user", "user_hash", "time"),
)
deleted = Table(
    "deleted", metadata, Column("user_hash", String(64), primary_key=True), Column("created", Float, nullable=False)
)  # users whose rows in other files must not be learned from


class Taken(NamedTuple):
    """An item that a user took, and the time in seconds since 1970."""

    item: str
    time: float


class Events(Database):
    """The event store. The futures of `keep_events` and `keep_list` are done when the rows are on the disk."""

    def __init__(self, url: str, salt: bytes | None = None):
        """Open or create the tables; a `salt` is for simulated users alone. Raises TenfoldError where that fails."""
        super().__init__(url, KIND, salt)
        self.writer = Writer(self._engine)

    @classmethod
    def open(cls, database: str) -> "Events":
        """Open an event store by its URL or SQLite file. Raises TenfoldError where there is none."""
        if "://" not in database and not Path(database).is_file():
            raise TenfoldError(f"There are no events in {database}: give the database of `tenfold rank serve --events`.")
        return cls(database)

    @property
    def nobody(self) -> str:
        """The hash of all users who were not named: many people, who must not be taken for one."""
        return self.user_hash(ANYBODY.name)

    def keep_events(self, user: str, rows: Rows) -> "Future[int]":
        """Add events of a user: rows with the columns of `events` except `user_hash` and `created`.

        The future gives how many were new: an id that is there already is not added again.
        """
        whose, now = self.user_hash(user), time.time()
        return self.writer.add(events, [{"user_hash": whose, "created": now, **row} for row in rows])

    def keep_list(self, list_id: str, user: str, shown: dict[str, Any]) -> "Future[int]":
        """Add a list that was shown to a user; `shown` is the answer with the request, as `serving.asking` makes it."""
        row = {"id": list_id, "created": time.time(), "user_hash": self.user_hash(user), "shown": shown}
        return self.writer.add(lists, [row])

    def history(self, user: str, most: int, actions: Sequence[str] = (), before: float | None = None) -> list[Taken]:
        """The newest `most` items that a user took, the oldest of them first; of the given actions only, where there are any.

        With `before`, only of events that the server had by then.
        """
        return self.history_of(self.user_hash(user), most, actions, before)

    def history_of(self, user_hash: str, most: int, actions: Sequence[str] = (), before: float | None = None) -> list[Taken]:
        """As `history`, for the hash of a user."""
        asked = select(events.c.item, events.c.time).where(events.c.user_hash == user_hash)
        if actions:
            asked = asked.where(events.c.action.in_(actions))
        if before is not None:
            asked = asked.where(events.c.created < before)
        newest = asked.order_by(events.c.time.desc(), events.c.created.desc(), events.c.id.desc()).limit(most)
        with self._engine.connect() as connection:
            return [Taken(*row) for row in reversed(connection.execute(newest).all())]

    def delete_user(self, user: str) -> int:
        """Delete everything of a user, and remember the hash. Returns the number of deleted rows."""
        who, gone = self.user_hash(user), 0
        # The writer keeps the order of requests: then rows of theirs that still waited are on the disk, too.
        self.writer.add(deleted, [{"user_hash": who, "created": time.time()}]).result()
        with self._engine.begin() as connection:
            for table in (events, lists):
                gone += connection.execute(table.delete().where(table.c.user_hash == who)).rowcount
        return gone

    def deleted_users(self) -> set[str]:
        """The hashes of users who had everything deleted."""
        with self._engine.connect() as connection:
            return set(connection.scalars(select(deleted.c.user_hash)))

    def users(self) -> set[str]:
        """The hashes of all users with events or lists in the store."""
        with self._engine.connect() as connection:
            return {user for table in (events, lists) for user in connection.scalars(select(table.c.user_hash).distinct())}

    def actions_on_lists(self, actions: Sequence[str] = ()) -> set[tuple[str, str]]:
        """(list id, item) for every item that was taken from a list, by one of the actions where any are given."""
        asked = select(events.c.list_id, events.c.item).where(events.c.list_id.is_not(None)).distinct()
        asked = asked.where(events.c.action.in_(actions)) if actions else asked
        with self._engine.connect() as connection:
            return {(row.list_id, row.item) for row in connection.execute(asked)}

    def newest_lists(self, most: int) -> Sequence[Row[Any]]:
        """The newest `most` lists that were shown."""
        with self._engine.connect() as connection:
            return connection.execute(select(lists).order_by(lists.c.created.desc(), lists.c.id).limit(most)).all()

    def of_lists(self) -> Iterator[Row[Any]]:
        """Every list that was shown, the oldest first."""
        return self.rows(lists)

    def close(self) -> None:
        """Write the rows that wait, and close the database."""
        self.writer.close()
        self._engine.dispose()
