"""Feedback on answers, kept append-only in SQLite or any database of SQLAlchemy, and only with consent.

An answer is stored when its request says `store: true`; only stored answers can be judged. Users are stored as keyed
hashes, and everything that a user gave can be deleted.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    JSON,
    URL,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    Text,
    create_engine,
    event,
    inspect,
    make_url,
    select,
)
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import make_private
from tenfold.spec.versions import require_version

T = TypeVar("T")
VERSION = 1  # of the tables
_TRIES = 20  # to open a database that another process opens as well
WINNERS = ("a", "b", "tie", "both_bad")
metadata = MetaData()
settings = Table("settings", metadata, Column("name", String(40), primary_key=True), Column("value", String(200)))
responses = Table(
    "responses",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("created", Float, nullable=False),
    Column("user_hash", String(64), index=True, nullable=False),
    Column("model", String(200), nullable=False),
    Column("checkpoint", String(64), nullable=False),
    Column("messages", JSON, nullable=False),
    Column("text", Text, nullable=False),
    Column("token_ids", JSON, nullable=False),
    Column("logprobs", JSON),
    Column("sampling", JSON, nullable=False),
    Column("finish_reason", String(20), nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("ttft_ms", Float),
)


def _judgement(name: str, *columns: Column[Any]) -> Table:
    return Table(
        name,
        metadata,
        Column("id", Integer, primary_key=True),
        Column("created", Float, nullable=False),
        Column("user_hash", String(64), index=True, nullable=False),
        *columns,
    )


def _response(name: str) -> Column[Any]:
    return Column(name, String(80), ForeignKey("responses.id", ondelete="CASCADE"), index=True, nullable=False)


ratings = _judgement(
    "ratings", _response("response_id"), Column("value", Integer), Column("reasons", JSON), Column("comment", Text)
)
corrections = _judgement("corrections", _response("response_id"), Column("text", Text, nullable=False))
pairs = _judgement(
    "pairs",
    _response("a_response_id"),
    _response("b_response_id"),
    Column("winner", String(10), nullable=False),
    Column("blind", Boolean, nullable=False),
    Column("position_swapped", Boolean, nullable=False),
)


class Feedback:
    """One database. When a method returns, its data is on the disk."""

    def __init__(self, url: str, salt: bytes | None = None, *, create: bool = True):
        """Open the tables at an SQLAlchemy `url`, or `create` them. Raises TenfoldError if that fails, or there are none.

        A new database draws the salt of its users' hashes; one is given only where users are simulated, and a run is to be
        repeated with the same ones held out.
        """
        address = _address(url)
        shown = address.set(query={}).render_as_string(hide_password=True)
        try:
            self._engine = create_engine(address, hide_parameters=True)
            if self._is_sqlite:
                _make_private(address.database or "", create)
                event.listen(self._engine, "connect", _durable_sqlite)
            if not create and not inspect(self._engine).has_table(settings.name):
                raise TenfoldError(f"The database {shown} holds no feedback: give the URL that the server has.")
            _together(partial(metadata.create_all, self._engine))
            self._salt = bytes.fromhex(self._setting("salt", (salt or secrets.token_bytes(32)).hex()))
            version = int(self._setting("version", str(VERSION)))
        except (SQLAlchemyError, ImportError) as error:
            why = str(error).splitlines()[0].replace(address.password or "\n", "***")
            raise TenfoldError(f"The feedback database {shown} cannot be opened: {why}.") from None
        require_version(version, (VERSION,), f"The feedback database {shown}", "begin another with --feedback")

    @property
    def _is_sqlite(self) -> bool:
        return self._engine.dialect.name == "sqlite"

    def _setting(self, name: str, first: str) -> str:
        """What the database keeps under a name; in a new one `first`."""

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

    def add_response(self, row: dict[str, Any], user: str) -> None:
        """Store an answer; `row` has the columns of `responses` except the user and the time."""
        with self._engine.begin() as connection:
            connection.execute(responses.insert().values(created=time.time(), user_hash=self.user_hash(user), **row))

    def has(self, response_id: str, user: str | None) -> bool:
        """Whether an answer is stored; with a user, whether it is that user's."""
        asked = select(responses.c.id).where(responses.c.id == response_id)
        if user is not None:
            asked = asked.where(responses.c.user_hash == self.user_hash(user))
        with self._engine.connect() as connection:
            return connection.scalar(asked) is not None

    def rate(self, response_id: str, user: str, value: int, reasons: list[str], comment: str | None) -> None:
        """Keep a thumb up (1) or down (-1); the latest of each user counts."""
        self._judge(ratings, user, response_id=response_id, value=value, reasons=reasons, comment=comment)

    def correct(self, response_id: str, user: str, text: str) -> None:
        """Keep the text that the answer should have been."""
        self._judge(corrections, user, response_id=response_id, text=text)

    def compare(self, a: str, b: str, user: str, winner: str, blind: bool, position_swapped: bool) -> None:
        """Keep which of two answers to the same conversation is better: a, b, tie or both_bad."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(responses.c.messages).where(responses.c.id.in_((a, b)))).all()
        if len(rows) == 2 and rows[0].messages != rows[1].messages:
            raise TenfoldError("The two answers are not answers to the same conversation.")
        chosen = {"a_response_id": a, "b_response_id": b, "winner": winner}
        self._judge(pairs, user, **chosen, blind=blind, position_swapped=position_swapped)

    def _judge(self, table: Table, user: str, **values: Any) -> None:
        try:
            with self._engine.begin() as connection:
                connection.execute(table.insert().values(created=time.time(), user_hash=self.user_hash(user), **values))
        except IntegrityError:
            raise TenfoldError("There is no such stored answer: ask for it with `store: true` first.") from None

    def delete_user(self, user: str) -> int:
        """Delete a user's answers, all judgements of them and all judgements by the user; the number of rows deleted."""
        who, gone = self.user_hash(user), 0
        with self._engine.begin() as connection:
            theirs = select(responses.c.id).where(responses.c.user_hash == who)
            for table, columns in (
                (ratings, (ratings.c.response_id,)),
                (corrections, (corrections.c.response_id,)),
                (pairs, (pairs.c.a_response_id, pairs.c.b_response_id)),
            ):
                gone += connection.execute(table.delete().where(table.c.user_hash == who)).rowcount
                for column in columns:
                    gone += connection.execute(table.delete().where(column.in_(theirs))).rowcount
            gone += connection.execute(responses.delete().where(responses.c.user_hash == who)).rowcount
        return gone

    def users(self) -> set[str]:
        """The hashes of all users of whom anything is kept."""
        with self._engine.connect() as connection:
            found = (connection.scalars(select(table.c.user_hash)) for table in (responses, ratings, corrections, pairs))
            return {user for some in found for user in some}

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


def _address(url: str) -> URL:
    """Raises TenfoldError, without a word of the URL, since it may hold a password."""
    try:
        return make_url(url)
    except (SQLAlchemyError, ValueError):
        said = "sqlite:///FILE or DIALECT://USER:PASSWORD@HOST:PORT/NAME, special characters in the password as %XX"
        raise TenfoldError(f"The URL of the feedback database cannot be read: write {said}.") from None


def _make_private(database: str, create: bool) -> None:
    """Create SQLite's file, from which its log and index take their permissions. Raises TenfoldError if it may not and must."""
    file = database.removeprefix("file:").partition("?")[0]
    if not file or file.startswith(":"):
        return
    if not create and not Path(file).exists():
        raise TenfoldError(f"There is no feedback database {file}: give the URL that the server has.")
    make_private(Path(file))


def _durable_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    for setting in ("busy_timeout=10000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()
