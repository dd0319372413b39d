"""A database of what people did, in any database of SQLAlchemy: opened with its tables, durable, users as keyed hashes."""

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
_TRIES = 20  # to open a database that another process opens as well
SQLITE_FILES = (".db", ".sqlite", ".sqlite3")  # what names a file that is not there yet


class Kind(NamedTuple):
    """What a database holds: its tables and their version, its name in errors, and the option that names one."""

    metadata: MetaData
    version: int
    name: str
    option: str

    @property
    def settings(self) -> Table:
        """The table of the salt and the version, beside the others."""
        columns = Column("name", String(40), primary_key=True), Column("value", String(200))
        return Table("settings", self.metadata, *columns, keep_existing=True)


class Database:
    """One database. When a method returns, its data is on the disk."""

    def __init__(self, url: str, kind: Kind, salt: bytes | None = None, *, create: bool = True):
        """Open the tables at an SQLAlchemy `url`, or in SQLite's file, or `create` them. Raises TenfoldError if that fails.

        A new database draws the salt of its users' hashes; one is given only where users are simulated, and a run is to be
        repeated with the same ones held out.
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
                self._engine.connect().close()  # so that what is repeated below is a race alone, and no host that does not answer
            if not create and not inspect(self._engine).has_table(self._settings.name):
                raise TenfoldError(f"The database {shown} holds no {kind.name}: give the URL that the server has.")
            _together(partial(kind.metadata.create_all, self._engine))
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
        """What the database keeps under a name; in a new one `first`."""
        settings = self._settings

        def read_or_write() -> str:
            with self._engine.begin() as connection:
                known = connection.scalar(select(settings.c.value).where(settings.c.name == name))
                if known is None:
                    known = first
                    connection.execute(settings.insert().values(name=name, value=known))
            return known

        return _together(read_or_write)

    def user_hash(self, user: str) -> str:
        """The keyed hash of a user, which cannot be traced back without this database's salt."""
        return hmac.new(self._salt, user.encode(errors="replace"), hashlib.sha256).hexdigest()

    def rows(self, table: Table) -> Iterator[Row[Any]]:
        """Every row of a table, oldest first."""
        with self.snapshot() as snapshot:
            yield from snapshot.rows(table)

    @contextmanager
    def snapshot(self) -> Iterator["Snapshot"]:
        """All tables as they are at one moment, whatever is written meanwhile."""
        with self._engine.connect() as connection:
            if self._is_sqlite:
                connection.exec_driver_sql("BEGIN")  # the driver would read each table at a moment of its own
            else:
                connection.execution_options(isolation_level="REPEATABLE READ")
            yield Snapshot(connection)


class Snapshot:
    """The rows of a database at one moment."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def rows(self, table: Table) -> Iterator[Row[Any]]:
        """Every row of a table, oldest first."""
        asked = select(table).order_by(table.c.created, table.c.id)
        yield from self._connection.execute(asked, execution_options={"yield_per": 500})


def _together(work: Callable[[], T]) -> T:
    """What `work` gives where several processes open a new database at once, and one of them was first."""
    for _ in range(_TRIES):
        with suppress(IntegrityError, OperationalError, ProgrammingError):
            return work()
        time.sleep(0.05)
    return work()


def _address(url: str, name: str) -> URL:
    """A URL, or the SQLite file of a path. Raises TenfoldError, without a word of the URL, since it may hold a password."""
    try:
        is_file = Path(url).exists() or (":" not in url and url.endswith(SQLITE_FILES))
        return make_url(f"sqlite:///{url}" if is_file else url)
    except (SQLAlchemyError, ValueError, OSError):
        said = "FILE.db or DIALECT://USER:PASSWORD@HOST:PORT/NAME, special characters in the password as %XX"
        raise TenfoldError(f"The URL of the {name} database cannot be read: write {said}.") from None


def _make_private(database: str, create: bool, name: str) -> None:
    """Create SQLite's file, from which its log and index take their permissions. Raises TenfoldError if it may not and must."""
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
