"""Prepare a table of users, items and times as interactions in a home: sorted, numbered and split.

The names of the items that appear before the end of the training events are stored as a tokenizer, so that a model of items is
stored with its vocabulary like a model of text.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from tokenizers import Tokenizer, models

from tenfold.data.fingerprint import digest
from tenfold.data.interactions.content import first_rows
from tenfold.data.interactions.events import FILE, ITEMS, Interactions
from tenfold.data.interactions.read import MOVIELENS, file_of_items, is_database, item_attributes, movielens, read_interactions
from tenfold.data.interactions.report import write_report
from tenfold.data.interactions.splits import Split, ends
from tenfold.data.interactions.synthetic import made
from tenfold.model.io.tokenizer import read_tokenizer, save_tokenizer
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import atomic_folder, file_sha256
from tenfold.spec.vocabulary import Vocabulary

START = "<start>"  # the name of token 0, which begins a history


def open_interactions(source: str, home: Path, split: Split = Split()) -> Interactions:
    """The interactions of a file, a database, `synthetic`, `teacher` or `movielens-100k`, prepared once in a folder of `home`.

    Raises TenfoldError if they cannot be read, or if the split leaves no event to learn from or to ask about.
    """
    source = str(movielens()) if source == MOVIELENS else source
    drawn, table = made(source), None
    if drawn is None and (is_database(source) or not Path(source).is_file()):
        table = read_interactions(source)  # all rows of a database, to hash them; for a missing file this raises
    files = [file for file in (Path(source), file_of_items(source)) if file is not None]
    content = [repr(table.to_pydict())] if table is not None else [repr(drawn)] if drawn else [file_sha256(file) for file in files]
    stem = "database" if is_database(source) else Path(source.partition(":")[0]).stem
    directory = home / f"interactions-{stem}-{digest([*content, Path(source).suffix, split.name])[:8]}"
    if not directory.exists():
        rows = table if table is not None else drawn.table() if drawn else read_interactions(source)
        _write(directory, source, rows, split)
    return _open(directory, split)


def _open(directory: Path, split: Split) -> Interactions:
    events = pa.parquet.read_table(directory / FILE, columns=["user", "token", "time"])
    users = events["user"].combine_chunks().indices.to_numpy()
    offsets = np.concatenate(([0], np.bincount(users).cumsum()))
    items, times = events["token"].to_numpy(), events["time"].to_numpy()
    return Interactions(directory, split, read_tokenizer(directory).get_vocab_size(), items, times, offsets)


def _write(directory: Path, source: str, table: pa.Table, split: Split) -> None:
    """Sort events by user and time (equal times in the order of the table), leave out copies, number the items, and write all."""
    users, items = (table[name].combine_chunks().dictionary_encode() for name in ("user", "item"))
    user, item, time = users.indices.to_numpy(), items.indices.to_numpy(), table["time"].to_numpy()
    order = np.lexsort((time, user))
    user, item, time = user[order], item[order], time[order]
    copies = _is_copy(user, item, time)
    kept, order = ~copies, order[~copies]
    user, item, time = user[kept], item[kept], time[kept]
    offsets = np.concatenate(([0], np.bincount(user).cumsum()))
    by_first = _first_seen(item, time, len(items.dictionary))
    token = np.empty(len(by_first), np.int32)
    token[by_first] = np.arange(1, len(by_first) + 1)
    found = ends(split, offsets, time)
    asked = (found.test > found.validation).any() and (found.validation > found.training).any()
    names = items.dictionary.take(pa.array(by_first)).to_pylist()
    known = len(np.unique(item[time < found.until]))
    if START in names:
        raise TenfoldError(f"{source} has an item called {START!r}, the name that begins a history: rename the item.")
    if not asked or not known:
        raise TenfoldError(
            f"The split {split.kind} of {source} leaves no events to train on or to test with: it needs a user with three "
            "interactions, and events before and after its moments."
        )
    with atomic_folder(directory) as scratch:
        others = table.drop_columns(["user", "item", "time"]).take(pa.array(order))
        columns = {"user": pa.DictionaryArray.from_arrays(user, users.dictionary), "token": token[item], "time": time}
        pa.parquet.write_table(pa.table(columns | {n: others[n] for n in others.column_names}), scratch / FILE)
        pa.parquet.write_table(attributes_of(names, item_attributes(source, table)), scratch / ITEMS)
        write_names(names[:known], scratch)
        write_report(scratch, Interactions(scratch, split, known + 1, token[item], time, offsets), int(copies.sum()))


def write_names(names: list[str], directory: Path) -> None:
    """Write the names of items, whose tokens are 1 and up, as the tokenizer of a folder."""
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate([START, *names])}, unk_token=START))
    tokenizer.add_special_tokens([START])
    save_tokenizer(tokenizer, Vocabulary(size=len(names) + 1, bos=0, eos=(0,), special={START: 0}), directory)


def _is_copy(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Whether each event is a copy of an earlier one, bool [events]. Events are sorted by user and time."""
    order = np.lexsort((item, time, user))
    u, i, t = user[order], item[order], time[order]
    same = np.concatenate(([False], (u[1:] == u[:-1]) & (i[1:] == i[:-1]) & (t[1:] == t[:-1])))
    copies = np.empty(len(user), bool)
    copies[order] = same
    return copies


def _first_seen(item: np.ndarray, time: np.ndarray, items: int) -> np.ndarray:
    """The numbers of the items, in the order of their first events."""
    order = np.argsort(time, kind="stable")
    _, first = np.unique(item[order], return_index=True)
    assert len(first) == items
    return np.argsort(first, kind="stable")


def attributes_of(names: list[str], attributes: pa.Table) -> pa.Table:
    """The attributes of the items `names`, in this order; null for an item that `attributes` does not have."""
    place = first_rows(attributes)
    taken = attributes.take(pa.array([place.get(name) for name in names], pa.int64()))
    return taken.set_column(taken.schema.get_field_index("item"), "item", pa.array(names))
