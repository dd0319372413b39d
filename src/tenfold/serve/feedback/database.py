"""A database of what people did, in any database of SQLAlchemy: opened with its tables, durable, users as keyed hashes."""

import hashlib
import hmac
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import URL, Column, MetaData, Row, String, Table, create_engine, event, make_url, select
from sqlalchemy.exc import SQLAlchemyError

from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import make_private
from tenfold.spec.versions import require_version


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

    def __init__(self, url: str, kind: Kind, salt: bytes | None = None):
        """Open or create the tables at an SQLAlchemy `url`. Raises TenfoldError if that fails.

        A new database draws the salt of its users' hashes; one is given only where users are simulated, and a run is to be
        repeated with the same ones held out.
        """
        address = _address(url, kind.name)
        shown = address.set(query={}).render_as_string(hide_password=True)
        self._settings = kind.settings
        try:
            self._engine = create_engine(address, hide_parameters=True)
            if self._engine.dialect.name == "sqlite":
                _make_private(address.database or "")
                event.listen(self._engine, "connect", _durable_sqlite)
            kind.metadata.create_all(self._engine)
            self._salt = bytes.fromhex(self._setting("salt", (salt or secrets.token_bytes(32)).hex()))
            version = int(self._setting("version", str(kind.version)))
        except (SQLAlchemyError, ImportError) as error:
            why = str(error).splitlines()[0].replace(address.password or "\n", "***")
            raise TenfoldError(f"The {kind.name} database {shown} cannot be opened: {why}.") from None
        require_version(version, (kind.version,), f"The {kind.name} database {shown}", f"begin another with {kind.option}")

    def _setting(self, name: str, first: str) -> str:
        """What the database keeps under a name; in a new one `first`."""
        settings = self._settings
        with self._engine.begin() as connection:
            known = connection.scalar(select(settings.c.value).where(settings.c.name == name))
            if known is None:
                known = first
                connection.execute(settings.insert().values(name=name, value=known))
        return known

    def user_hash(self, user: str) -> str:
        """The keyed hash of a user, which cannot be traced back without this database's salt."""
        return hmac.new(self._salt, user.encode(errors="replace"), hashlib.sha256).hexdigest()

    def rows(self, table: Table) -> Iterator[Row[Any]]:
        """Every row of a table, oldest first."""
        order = (table.c.created, table.c.id)
        with self._engine.connect() as connection:
            yield from connection.execution_options(yield_per=500).execute(select(table).order_by(*order))


def _address(url: str, name: str) -> URL:
    """Raises TenfoldError, without a word of the URL, since it may hold a password."""
    try:
        return make_url(url)
    except (SQLAlchemyError, ValueError):
        said = "sqlite:///FILE or DIALECT://USER:PASSWORD@HOST:PORT/NAME, special characters in the password as %XX"
        raise TenfoldError(f"The URL of the {name} database cannot be read: write {said}.") from None


def _make_private(database: str) -> None:
    """Create SQLite's file, from which its log and index take their permissions."""
    file = database.removeprefix("file:").partition("?")[0]
    if file and not file.startswith(":"):
        make_private(Path(file))


def _durable_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()
