"""Prepare a table of users, items and times as interactions in a home: sorted, numbered and split.

The names of the items that appear before the training ends are kept as a tokenizer, so that a model of items has its vocabulary in
the files beside it as a model of text does.
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
from tenfold.spec.files import file_sha256, whole_folder
from tenfold.spec.vocabulary import Vocabulary

START = "<start>"


def open_interactions(source: str, home: Path, split: Split = Split()) -> Interactions:
    """The interactions of a file, a database, or of `synthetic` or `movielens-100k`, made ready in `home`.

    Raises TenfoldError where they cannot be had, or too few of them may be learned from or are asked about.
    """
    source = str(movielens()) if source == MOVIELENS else source
    drawn, table = made(source), None
    if drawn is None and (is_database(source) or not Path(source).is_file()):
        table = read_interactions(source)  # of a database all rows say what it holds; of no file, that there is none
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
    """Sort events by user and time, those of one time in the order of the table; number the items; leave out copies of a row."""
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
        raise TenfoldError(f"{source} has an item called {START!r}, which is what begins a history: give it another name.")
    if not asked or not known:
        raise TenfoldError(
            f"The split {split.kind} of {source} leaves nothing to learn from or to ask about: it needs a user with three "
            "interactions, and events on both sides of its moments."
        )
    with whole_folder(directory) as scratch:
        others = table.drop_columns(["user", "item", "time"]).take(pa.array(order))
        columns = {"user": pa.DictionaryArray.from_arrays(user, users.dictionary), "token": token[item], "time": time}
        pa.parquet.write_table(pa.table(columns | {n: others[n] for n in others.column_names}), scratch / FILE)
        pa.parquet.write_table(attributes_of(names, item_attributes(source, table)), scratch / ITEMS)
        write_names(names[:known], scratch)
        write_report(scratch, Interactions(scratch, split, known + 1, token[item], time, offsets), int(copies.sum()))


def write_names(names: list[str], directory: Path) -> None:
    """Keep the names of items, by token from 1 on, as the tokenizer of a folder."""
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate([START, *names])}, unk_token=START))
    tokenizer.add_special_tokens([START])
    save_tokenizer(tokenizer, Vocabulary(size=len(names) + 1, bos=0, eos=(0,), special={START: 0}), directory)


def _is_copy(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Whether an event is a copy of an earlier one; events are sorted by user and time."""
    order = np.lexsort((item, time, user))
    u, i, t = user[order], item[order], time[order]
    same = np.concatenate(([False], (u[1:] == u[:-1]) & (i[1:] == i[:-1]) & (t[1:] == t[:-1])))
    copies = np.empty(len(user), bool)
    copies[order] = same
    return copies


def _first_seen(item: np.ndarray, time: np.ndarray, items: int) -> np.ndarray:
    """The items in the order of their first event in time."""
    order = np.argsort(time, kind="stable")
    _, first = np.unique(item[order], return_index=True)
    assert len(first) == items
    return np.argsort(first, kind="stable")


def attributes_of(names: list[str], attributes: pa.Table) -> pa.Table:
    """Attributes of the items named, in this order; null where nothing is known of one."""
    place = first_rows(attributes)
    taken = attributes.take(pa.array([place.get(name) for name in names], pa.int64()))
    return taken.set_column(taken.schema.get_field_index("item"), "item", pa.array(names))
