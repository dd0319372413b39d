"""Tables of who took what when, from Parquet, CSV and RecBole's `.inter` files: the columns user, item and time.

What a user thought of an item (`rating`) is not used: every row counts alike.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from tenfold.spec.errors import NotInstalled, TenfoldError

MOVIELENS = "movielens-100k"
NAMES = {"user": ("user", "user_id", "userId"), "item": ("item", "item_id", "movieId"), "time": ("time", "timestamp")}


def movielens() -> Path:
    """MovieLens-100K as RecBole's wheel has it. Raises TenfoldError where that is not installed."""
    found = find_spec("recbole")
    if found is None or not found.submodule_search_locations:
        raise NotInstalled("MovieLens-100K comes with RecBole's wheel: run `pip install --no-deps recbole==1.2.1`.")
    return Path(found.submodule_search_locations[0]) / "dataset_example" / "ml-100k" / "ml-100k.inter"


def read_histories(path: Path) -> tuple[list[list[int]], list[str]]:
    """Each user's items in the order of time, as numbers from 0, and the items' names by number.

    Rows of one user at one time keep the order of the file. Raises TenfoldError for a file that has no such table.
    """
    table = _read(path)
    if not len(table) or any(column.null_count for column in table.columns):
        raise TenfoldError(f"{path} has no rows, or rows with an empty field: each needs a user, an item and a time.")
    users, items = (table[name].cast(pa.string()).combine_chunks().dictionary_encode() for name in ("user", "item"))
    user = users.indices.to_numpy()
    order = np.lexsort((_numbers(table["time"], path), user))
    histories = np.split(items.indices.to_numpy()[order], np.bincount(user).cumsum()[:-1])
    return [history.tolist() for history in histories], items.dictionary.to_pylist()


def _read(path: Path) -> pa.Table:
    try:
        if path.suffix == ".parquet":
            table = pa.parquet.read_table(path)
        else:
            tabs = pa.csv.ParseOptions(delimiter="," if path.suffix == ".csv" else "\t")
            table = pa.csv.read_csv(path, parse_options=tabs)
    except (pa.ArrowInvalid, OSError) as error:
        raise TenfoldError(f"{path} cannot be read as a table: {str(error).splitlines()[0].rstrip('.')}.") from None
    columns = {name.split(":")[0]: table[name] for name in table.column_names}  # RecBole writes user_id:token
    found = {name: next((columns[known] for known in NAMES[name] if known in columns), None) for name in NAMES}
    if missing := [name for name, column in found.items() if column is None]:
        raise TenfoldError(f"{path} has no column {missing[0]!r}: it has {', '.join(columns)}.")
    return pa.table(found)


def _numbers(column: pa.ChunkedArray, path: Path) -> np.ndarray:
    """Times as numbers that rise; their unit does not matter."""
    try:
        numbers = (column.cast(pa.int64()) if pa.types.is_temporal(column.type) else column.cast(pa.float64())).to_numpy()
    except pa.ArrowInvalid:
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all():
        raise TenfoldError(f"The column time of {path} has values that are no times, such as {column[0]}: give numbers.")
    return numbers
