"""Databases of users' feedback and events, in SQLite or any database of SQLAlchemy: durable, with users as keyed hashes."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import URL, Column, MetaData, Row, String, Table, create_engine, event, inspect, make_url, select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import make_private
from tenfold.spec.versions import require_version

T = TypeVar("T")
_TRIES = 20  # of creating tables or settings while another process creates them
SQLITE_FILES = (".db", ".sqlite", ".sqlite3")  # suffixes by which a path that does not exist is taken for an SQLite file


class Kind(NamedTuple):
    """A kind of database: its tables and their version, its name in error messages, and the option that names one."""

    metadata: MetaData
    version: int
    name: str
    option: str

    @property
    def settings(self) -> Table:
        """The table that holds the salt and the version."""
        columns = Column("name", String(40), primary_key=True), Column("value", String(200))
        return Table("settings", self.metadata, *columns, keep_existing=True)


class Database:
    """One open database. When a method returns, its data is on the disk."""

    def __init__(self, url: str, kind: Kind, salt: bytes | None = None, *, create: bool = True):
        """Open the database at an SQLAlchemy `url` or the path of an SQLite file, and with `create` make missing tables.

        A new database draws the `salt` of its user hashes. Give one only for simulated users, to repeat a run with the same users
        held out for the test. Raises TenfoldError if the database cannot be opened, or has tables of another version.
        """
        address = _address(url, kind.name)
        shown = address.set(query={}).render_as_string(hide_password=True)
        self._settings = kind.settings
        try:
            self._engine = create_engine(address, hide_parameters=True)
            if self._is_sqlite:
                _make_private(address.database or "", create, kind.name)
                event.listen(self._engine, "connect", _durable_sqlite)
            else:
                self._engine.connect().close()  # fails at once for a host that does not answer, which `_retried` would try again
            if not create and not inspect(self._engine).has_table(self._settings.name):
                raise TenfoldError(f"The database {shown} holds no {kind.name}: give the URL that the server has.")
            _retried(partial(kind.metadata.create_all, self._engine))
            self._salt = bytes.fromhex(self._setting("salt", (salt or secrets.token_bytes(32)).hex()))
            version = int(self._setting("version", str(kind.version)))
        except (SQLAlchemyError, ImportError) as error:
            why = str(error).splitlines()[0].replace(address.password or "\n", "***")
            raise TenfoldError(f"The {kind.name} database {shown} cannot be opened: {why}.") from None
        require_version(version, (kind.version,), f"The {kind.name} database {shown}", f"begin another with {kind.option}")

    @property
    def _is_sqlite(self) -> bool:
        return self._engine.dialect.name == "sqlite"

    def _setting(self, name: str, first: str) -> str:
        """The setting of this name; a new database gets `first`."""
        settings = self._settings

        def read_or_write() -> str:
            with self._engine.begin() as connection:
                known = connection.scalar(select(settings.c.value).where(settings.c.name == name))
                if known is None:
                    known = first
                    connection.execute(settings.insert().values(name=name, value=known))
            return known

        return _retried(read_or_write)

    def user_hash(self, user: str) -> str:
        """The keyed hash (HMAC-SHA256) of a user, which cannot be linked to the user without this database's salt."""
        return hmac.new(self._salt, user.encode(errors="replace"), hashlib.sha256).hexdigest()

    def rows(self, table: Table) -> Iterator[Row[Any]]:
        """Every row of a table, oldest first."""
        with self.snapshot() as snapshot:
            yield from snapshot.rows(table)

    @contextmanager
    def snapshot(self) -> Iterator["Snapshot"]:
        """A consistent view of all tables, whatever is written meanwhile."""
        with self._engine.connect() as connection:
            if self._is_sqlite:
                connection.exec_driver_sql("BEGIN")  # without it, the driver would start a transaction for each read
            else:
                connection.execution_options(isolation_level="REPEATABLE READ")
            yield Snapshot(connection)


class Snapshot:
    """A consistent view of a database's tables."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def rows(self, table: Table) -> Iterator[Row[Any]]:
        """Every row of a table, oldest first."""
        asked = select(table).order_by(table.c.created, table.c.id)
        yield from self._connection.execute(asked, execution_options={"yield_per": 500})


def _retried(work: Callable[[], T]) -> T:
    """The result of `work`, repeated while it fails since another process is setting up the same new database."""
    for _ in range(_TRIES):
        with suppress(IntegrityError, OperationalError, ProgrammingError):
            return work()
        time.sleep(0.05)
    return work()


def _address(url: str, name: str) -> URL:
    """The URL of a database, also for the path of an SQLite file. Its TenfoldError does not quote `url` and its password."""
    try:
        is_file = Path(url).exists() or (":" not in url and url.endswith(SQLITE_FILES))
        return make_url(f"sqlite:///{url}" if is_file else url)
    except (SQLAlchemyError, ValueError, OSError):
        said = "FILE.db or DIALECT://USER:PASSWORD@HOST:PORT/NAME, special characters in the password as %XX"
        raise TenfoldError(f"The URL of the {name} database cannot be read: write {said}.") from None


def _make_private(database: str, create: bool, name: str) -> None:
    """Create SQLite's file, readable by its owner only; its journal files get the same permissions.

    Raises TenfoldError if the file does not exist and `create` is false.
    """
    file = database.removeprefix("file:").partition("?")[0]
    if not file or file.startswith(":"):
        return
    if not create and not Path(file).exists():
        raise TenfoldError(f"There is no {name} database {file}: give the URL that the server has.")
    make_private(Path(file))


def _durable_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    for setting in ("busy_timeout=10000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()
