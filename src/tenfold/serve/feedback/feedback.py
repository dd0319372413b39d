"""The database of feedback on answers: append-only, and written only with the user's consent.

An answer is stored when its request has `store: true`; only stored answers can be judged. Users are stored as keyed hashes, and
everything that a user gave can be deleted.
"""

import time
from collections import Counter
from typing import Any

from sqlalchemy import JSON, Boolean, Column, Float, ForeignKey, Integer, MetaData, String, Table, Text, select
from sqlalchemy.exc import IntegrityError

from tenfold.serve.feedback.database import Database, Kind
from tenfold.spec.errors import TenfoldError

VERSION = 1  # of the tables
DAY = 86400  # seconds
metadata = MetaData()
KIND = Kind(metadata, VERSION, "feedback", "--feedback")
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


class Feedback(Database):
    """An open feedback database."""

    def __init__(self, url: str, salt: bytes | None = None, *, create: bool = True):
        super().__init__(url, KIND, salt, create=create)

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
        """Store a thumb up (1) or down (-1); each user's latest one of an answer counts."""
        self._judge(ratings, user, response_id=response_id, value=value, reasons=reasons, comment=comment)

    def correct(self, response_id: str, user: str, text: str) -> None:
        """Store the text that the answer should have been."""
        self._judge(corrections, user, response_id=response_id, text=text)

    def compare(self, a: str, b: str, user: str, winner: str, blind: bool, position_swapped: bool) -> None:
        """Store which of two answers to the same conversation is better: a, b, tie or both_bad."""
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
        """Delete a user's answers, all judgements of them and all judgements by the user. Returns the number of deleted rows."""
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

    def by_day(self) -> dict[str, Counter[int]]:
        """The numbers of answers, thumbs up and down, corrections and comparisons by day (UTC, in days since 1970)."""
        kinds = {
            "answers": select(responses.c.created),
            "good": select(ratings.c.created).where(ratings.c.value > 0),
            "bad": select(ratings.c.created).where(ratings.c.value < 0),
            "corrections": select(corrections.c.created),
            "comparisons": select(pairs.c.created),
        }
        with self._engine.connect() as connection:
            return {kind: Counter(int(time // DAY) for time in connection.scalars(asked)) for kind, asked in kinds.items()}

    def reasons(self) -> Counter[str]:
        """How often each reason was given with a thumb."""
        with self._engine.connect() as connection:
            return Counter(reason for given in connection.scalars(select(ratings.c.reasons)) for reason in given or ())

    def users(self) -> set[str]:
        """The hashes of all users of whom there are rows."""
        with self._engine.connect() as connection:
            found = (connection.scalars(select(table.c.user_hash)) for table in (responses, ratings, corrections, pairs))
            return {user for some in found for user in some}
