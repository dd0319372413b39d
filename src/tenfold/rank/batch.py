"""Recommendations for many users at once, as a Parquet table."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from tenfold.data.interactions.read import read_interactions
from tenfold.rank.events.store import Events
from tenfold.rank.serving.places import List
from tenfold.rank.serving.protocol import LONGEST
from tenfold.rank.serving.recommender import Query, Recommender
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import atomic_file

TOGETHER = 1024  # users whose lists are made at once
SCHEMA = pa.schema([("user", pa.string()), ("place", pa.int32()), ("item", pa.string()), ("score", pa.float32())])


def is_event_store(source: str) -> bool:
    """Whether `source` is an event store: the URL of a database without `#table`, or an SQLite file."""
    return ("://" in source and "#" not in source) or source.endswith((".db", ".sqlite"))


def histories(source: str, actions: Sequence[str] = ()) -> Iterator[tuple[str, list[str], list[float]]]:
    """Each named user with the newest items that they took, and the times in seconds, the oldest first.

    Where `actions` are given, only events of these actions count. Raises TenfoldError for a table without a column `action` then.
    """
    if is_event_store(source):
        store = Events.open(source)
        for user in sorted(store.users() - {store.nobody}):
            taken = store.history_of(user, LONGEST, actions)
            yield user, [one.item for one in taken], [one.time for one in taken]
        return
    table = read_interactions(source)
    if actions and "action" not in table.column_names:
        raise TenfoldError(f"{source} has no column 'action': leave --history-actions out.")
    counts = pc.is_in(table["action"].cast(pa.string()), pa.array(actions)).to_numpy() if actions else np.ones(len(table), bool)
    users = table["user"].combine_chunks().dictionary_encode()
    times, items = table["time"].to_numpy(), table["item"]
    order = np.lexsort((times, users.indices.to_numpy()))
    ends = np.bincount(users.indices.to_numpy(), minlength=len(users.dictionary)).cumsum()
    for user, rows in zip(users.dictionary.to_pylist(), np.split(order, ends[:-1]), strict=True):
        taken = rows[counts[rows]][-LONGEST:]
        yield user, items.take(pa.array(taken)).to_pylist(), times[taken].tolist()


def recommend_all(recommender: Recommender, source: str, out: Path, k: int) -> int:
    """Write `k` items for each user of `source` to the Parquet file `out`; returns the number of users.

    The lists are as of the user's last event, and without items of the history.
    """
    users = 0
    ranker = recommender.ranker
    some: list[tuple[str, Query]] = []
    with atomic_file(out) as scratch, pa.parquet.ParquetWriter(scratch, SCHEMA) as writer:
        for user, names, times in histories(source, recommender.settings.history_actions):
            history = ranker.history(names, times, times[-1] if times else None)
            some.append((user, Query(history, k, left_out=frozenset(history.items))))
            if len(some) == TOGETHER:
                users += _write(recommender, some, writer)
                some = []
        users += _write(recommender, some, writer)
    return users


def _write(recommender: Recommender, some: list[tuple[str, Query]], writer: pa.parquet.ParquetWriter) -> int:
    """Write the lists of some users; returns how many they are."""
    names, columns = recommender.ranker.names, ([], [], [], [])  # type: ignore[var-annotated]
    for (user, _), made in zip(some, recommender.answer([query for _, query in some], np.random.default_rng(0)), strict=True):
        assert isinstance(made, List)  # a query without rules has an answer
        columns[0].extend([user] * len(made.tokens))
        columns[1].extend(range(1, len(made.tokens) + 1))
        columns[2].extend(names[token] for token in made.tokens)
        columns[3].extend(made.scores)
    if some:
        writer.write_table(pa.table(list(columns), schema=SCHEMA))
    return len(some)
