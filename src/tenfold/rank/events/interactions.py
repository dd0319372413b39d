"""What people did as interactions to learn from: the store's events, and an earlier table, without those who had theirs deleted."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from tenfold.data.interactions.read import read_interactions
from tenfold.rank.events.store import Events, events
from tenfold.spec.errors import TenfoldError

PER_USER_DAY = 1000  # events of a user in a day, above which they are left out: nobody takes so much
_DAY = 86400
SCHEMA = pa.schema([(name, pa.string()) for name in ("user", "item", "action")] + [("value", pa.float64()), ("time", pa.int64())])


@dataclass
class Gathered:
    """Interactions by time, users as the store's hashes; how many rows are the store's; and rows left out by reason."""

    table: pa.Table
    from_store: int
    left_out: Counter[str] = field(default_factory=Counter)


def gather(store: Events, base: str | None) -> Gathered:
    """Everything that may be learned from. Raises TenfoldError where that is nothing."""
    left_out: Counter[str] = Counter()
    taken = _of_store(store, left_out)
    parts = [taken] if base is None else [_of_base(store, base, left_out), taken]
    table = pa.concat_tables(parts)
    if not len(table):
        raise TenfoldError("There are no events to learn from: let people use the server first, or give --base.")
    order = np.argsort(table["time"].to_numpy(), kind="stable")
    return Gathered(table.take(pa.array(order)), len(taken), left_out)


def _of_store(store: Events, left_out: Counter[str]) -> pa.Table:
    given: Counter[tuple[str, int]] = Counter()
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for row in store.rows(events):
        day = row.user_hash, int(row.time // _DAY)
        given[day] += 1
        if given[day] > PER_USER_DAY:
            left_out["over the daily limit of a user"] += 1
            continue
        for name, value in (("user", row.user_hash), ("item", row.item), ("action", row.action), ("value", row.value)):
            columns[name].append(value)
        columns["time"].append(int(row.time))
    return pa.table(columns, SCHEMA)


def _of_base(store: Events, base: str, left_out: Counter[str]) -> pa.Table:
    """An earlier table, its users hashed as the store's are: one person is one user, and one who left is in neither."""
    table, gone = read_interactions(base), store.deleted_users()
    users = table["user"].combine_chunks().dictionary_encode()
    hashes = [store.user_hash(user) for user in users.dictionary.to_pylist()]
    stays = np.array([user not in gone for user in hashes])[users.indices.to_numpy()]
    left_out["of users who had theirs deleted"] += int((~stays).sum())
    names = pa.DictionaryArray.from_arrays(users.indices, pa.array(hashes)).cast(pa.string())
    columns = {"user": names, "item": table["item"], "time": table["time"]}
    columns |= {name: table[name] if name in table.column_names else pa.nulls(len(table)) for name in ("action", "value")}
    return pa.table({name: columns[name] for name in SCHEMA.names}).cast(SCHEMA).filter(pa.array(stays))
