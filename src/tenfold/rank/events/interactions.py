"""Interactions to train on: the events of the store and an earlier table, without users who had their data deleted."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from tenfold.data.interactions.interactions import attributes_of
from tenfold.data.interactions.read import item_attributes, read_interactions
from tenfold.rank.events.store import Events, events
from tenfold.spec.errors import TenfoldError

PER_USER_DAY = 1000  # events of a user in a day; further ones are left out, since no person takes so many items
_DAY = 86400
SCHEMA = pa.schema([(name, pa.string()) for name in ("user", "item", "action")] + [("value", pa.float64()), ("time", pa.int64())])


@dataclass
class Gathered:
    """Interactions sorted by time, with the store's hashes as users; how many rows are from the store; left-out rows by reason.

    Other columns of the earlier table are empty in rows of the store, except for attributes of items, which are in all rows.
    """

    table: pa.Table
    from_store: int
    left_out: Counter[str] = field(default_factory=Counter)


def gather(store: Events, base: str | None) -> Gathered:
    """All interactions to train on: the events of `store`, and the table `base`. Raises TenfoldError where there are none."""
    left_out: Counter[str] = Counter()
    taken = _of_store(store, left_out)
    table = taken
    if base is not None:
        earlier = read_interactions(base)
        table = pa.concat_tables([_of_base(store, earlier, left_out), taken], promote_options="default")
        table = _with_attributes(table, item_attributes(base, earlier))
    if not len(table):
        raise TenfoldError("There are no events to learn from: let people use the server first, or give --base.")
    order = np.argsort(table["time"].to_numpy(), kind="stable")
    return Gathered(table.take(pa.array(order)), len(taken), left_out)


def _of_store(store: Events, left_out: Counter[str]) -> pa.Table:
    given: Counter[tuple[str, int]] = Counter()
    nobody = store.nobody
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for row in store.rows(events):
        if row.user_hash == nobody:  # many people, whose events are no history of one
            left_out["of users who were not named"] += 1
            continue
        day = row.user_hash, int(row.time // _DAY)
        given[day] += 1
        if given[day] > PER_USER_DAY:
            left_out["over the daily limit of a user"] += 1
            continue
        for name, value in (("user", row.user_hash), ("item", row.item), ("action", row.action), ("value", row.value)):
            columns[name].append(value)
        columns["time"].append(int(row.time))
    return pa.table(columns, SCHEMA)


def _of_base(store: Events, table: pa.Table, left_out: Counter[str]) -> pa.Table:
    """An earlier table with its users hashed like the store's, so that they match, and without deleted users."""
    gone = store.deleted_users()
    users = table["user"].combine_chunks().dictionary_encode()
    hashes = [store.user_hash(user) for user in users.dictionary.to_pylist()]
    stays = np.array([user not in gone for user in hashes])[users.indices.to_numpy()]
    left_out["of users who had theirs deleted"] += int((~stays).sum())
    names = pa.DictionaryArray.from_arrays(users.indices, pa.array(hashes)).cast(pa.string())
    columns = {"user": names, "item": table["item"], "time": table["time"]}
    columns |= {name: table[name] if name in table.column_names else pa.nulls(len(table)) for name in ("action", "value")}
    known = pa.table({name: columns[name] for name in SCHEMA.names}).cast(SCHEMA)
    for name in table.column_names:
        if name not in columns:
            known = known.append_column(name, table[name])
    return known.filter(pa.array(stays))


def _with_attributes(table: pa.Table, attributes: pa.Table) -> pa.Table:
    """The table with a column item_... for each attribute of the items."""
    of_rows = attributes_of(table["item"].to_pylist(), attributes).drop_columns(["item"])
    names = [name if name.startswith("item_") else f"item_{name}" for name in of_rows.column_names]
    others = table.drop_columns([name for name in names if name in table.column_names])
    for name, column in zip(names, of_rows.columns, strict=True):
        others = others.append_column(name, column)
    return others
