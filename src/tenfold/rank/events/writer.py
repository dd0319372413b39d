"""A thread that writes rows: requests that arrive during a transaction go to the disk together in the next one."""

import threading
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, NamedTuple

from sqlalchemy import Engine, Table
from sqlalchemy.dialects import postgresql, sqlite

from tenfold.spec.errors import TenfoldError

TOGETHER = 256  # requests in one transaction, at most
Rows = list[dict[str, Any]]


class _Asked(NamedTuple):
    table: Table
    rows: Rows
    done: "Future[int]"


class Writer:
    """Adds rows to tables. A row whose primary key is there already is not added again, so clients may repeat requests."""

    def __init__(self, engine: Engine):
        self._engine = engine
        inserts: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
        if engine.dialect.name not in inserts:
            raise TenfoldError(f"Events are kept in SQLite or PostgreSQL, not in {engine.dialect.name}.")
        self._insert = inserts[engine.dialect.name]
        self._asked: SimpleQueue[_Asked | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="tenfold-events", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of requests whose rows are not written yet."""
        return self._asked.qsize()

    def add(self, table: Table, rows: Rows) -> "Future[int]":
        """Add rows. The future gives how many were new, once all are on the disk, or raises TenfoldError."""
        asked = _Asked(table, rows, Future())
        asked.done.set_running_or_notify_cancel()  # so that a client who leaves cannot cancel the write
        self._asked.put(asked)
        return asked.done

    def close(self) -> None:
        """Write the rows that wait, and end the thread."""
        self._asked.put(None)
        self._thread.join()

    def _work(self) -> None:
        more = True
        while more:
            batch = [self._asked.get()]
            while len(batch) < TOGETHER and not self._asked.empty():
                batch.append(self._asked.get())
            more = None not in batch
            self._write([asked for asked in batch if asked is not None])

    def _write(self, batch: list[_Asked]) -> None:
        """Write one transaction. Where it fails, none of its rows are kept, and all its futures raise TenfoldError."""
        try:
            with self._engine.begin() as connection:
                counting = connection.execution_options(preserve_rowcount=True)
                new = [sum(counting.execute(self._once(asked.table, row)).rowcount for row in asked.rows) for asked in batch]
        except Exception as error:  # drivers raise errors of their own; the thread must go on
            said = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            for asked in batch:
                asked.done.set_exception(TenfoldError(f"The events cannot be kept: {said}."))
            return
        for asked, count in zip(batch, new, strict=True):
            asked.done.set_result(count)

    def _once(self, table: Table, row: dict[str, Any]) -> Any:
        return self._insert(table).values(**row).on_conflict_do_nothing()
