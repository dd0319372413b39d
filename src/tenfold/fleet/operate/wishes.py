"""Operators' wishes in a fleet's ledger, beside the leases, and the controller's answers to them. Rows are only added."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Column, Float, ForeignKey, Integer, String, Table, Text, insert, select

from tenfold.fleet.ledger import Ledger, metadata
from tenfold.fleet.slots.slots import Wish
from tenfold.spec.errors import TenfoldError

WITHDRAWN = "withdrawn"
wishes = Table(
    "wishes",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("kind", String(20), nullable=False),
    Column("target", String(200), nullable=False),
    Column("until", Float, nullable=False),
    Column("role", String(200)),
    Column("mw", Float),
    Column("who", String(200), nullable=False),
    Column("why", Text, nullable=False),
    Column("at", Float, nullable=False),
    sqlite_autoincrement=True,
)
answers = Table(
    "wish_answers",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("wish", Integer, ForeignKey("wishes.id"), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("state", String(20), nullable=False),
    Column("said", Text, nullable=False),
    sqlite_autoincrement=True,
)


class Wishes:
    """The wishes of one ledger, which several processes may write. Times are by the system clock, as people give them."""

    def __init__(self, ledger: Ledger):
        metadata.create_all(ledger.engine)  # a ledger may have been created without these tables
        self._engine, self._last = ledger.engine, dict[int, tuple[str, str]]()

    def add(self, wish: Wish) -> Wish:
        """Add a wish. Its id is assigned here, and `at` where it is 0. Returns the wish."""
        values = {name: getattr(wish, name) for name in ("kind", "target", "until", "role", "mw", "who", "why")}
        with self._engine.begin() as connection:
            made = connection.execute(insert(wishes).values(**values, at=wish.at or time.time()))
            number = int(made.inserted_primary_key[0])  # type: ignore[index]
        return self.of(number)

    def of(self, number: int) -> Wish:
        """One wish with its last answer. Raises TenfoldError where there is no wish of this number."""
        found = self._read(wishes.c.id == number)
        if not found:
            raise TenfoldError(f"There is no wish {number}: `tenfold fleet status` lists the open wishes.")
        return found[0]

    def open(self, now: float) -> tuple[Wish, ...]:
        """The wishes that have neither ended nor been withdrawn, in the order of their ids."""
        return tuple(wish for wish in self._read(wishes.c.until > now) if wish.state != WITHDRAWN)

    def answer(self, said: Mapping[int, tuple[str, str]], now: float) -> None:
        """Write the state of wishes by their ids, with a reason, where it has changed. A withdrawn wish stays withdrawn."""
        new = [
            {"wish": number, "at": now, "state": word[0], "said": word[1]}
            for number, word in said.items()
            if self._last.get(number) != word
        ]
        if new:
            with self._engine.begin() as connection:
                connection.execute(insert(answers), new)
            self._last |= said

    def _read(self, which: Any) -> list[Wish]:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            rows = [dict(row._mapping) for row in connection.execute(select(wishes).where(which).order_by(wishes.c.id))]
            ids = [row["id"] for row in rows]
            if not ids:
                return []
            last: dict[int, tuple[str, str]] = {}
            for word in connection.execute(select(answers).where(answers.c.wish.in_(ids)).order_by(answers.c.id)):
                if last.get(word.wish, ("", ""))[0] != WITHDRAWN:
                    last[word.wish] = word.state, word.said
        self._last |= last
        return [replace(Wish(**row), state=word[0], said=word[1]) for row in rows for word in [last.get(row["id"], ("waits", ""))]]
