"""Read interactions from Parquet, CSV, JSON lines, SQL, MovieLens's `ratings.dat`, RecBole's `.inter`, and `user item` lines.

The result is a table with the columns user and item (text) and time (int64, seconds). All other columns stay as they are, such as
`action`, `rating`, `value`, the context of an event (`context_...`) and attributes of its item (`item_...`).
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from tenfold.spec.errors import NotInstalled, TenfoldError

MOVIELENS = "movielens-100k"
NAMES = {
    "user": ("user", "user_id", "userId"),
    "item": ("item", "item_id", "itemId", "movieId"),
    "time": ("time", "timestamp", "ts"),
}
TABLE = "interactions"  # the default table in a database
Reader = Callable[[Path], pa.Table]
TABLES: dict[str, Reader] = {
    ".parquet": pa.parquet.read_table,
    ".csv": pa.csv.read_csv,
    ".jsonl": pa.json.read_json,
    ".ndjson": pa.json.read_json,
}
UNITS = (1e11, 1e14, 1e17)  # times above these are in milli-, micro-, nanoseconds: 1e11 seconds would be the year 5138


def movielens() -> Path:
    """The file of MovieLens-100K in RecBole's wheel. Raises NotInstalled if that is not installed."""
    found = find_spec("recbole")
    if found is None or not found.submodule_search_locations:
        raise NotInstalled("MovieLens-100K comes with RecBole's wheel: run `pip install --no-deps recbole==1.2.1`.")
    return Path(found.submodule_search_locations[0]) / "dataset_example" / "ml-100k" / "ml-100k.inter"


def is_database(source: str) -> bool:
    return "://" in source


def read_interactions(source: str) -> pa.Table:
    """Read the table in a file or a database; `sqlite:///shop.db#events` is the table `events` of a database.

    Raises TenfoldError if there is no such table, if a column is missing, if a user, an item or a time is empty, or if the times
    are not valid.
    """
    table = _named(_from_database(source) if is_database(source) else _from_file(Path(source)), source)
    if not len(table) or any(table[name].null_count for name in NAMES):
        raise TenfoldError(f"{source} has no rows, or rows with an empty field: each needs a user, an item and a time.")
    for name in ("user", "item"):
        table = table.set_column(table.schema.get_field_index(name), name, _text(table[name], name, source))
    return table.set_column(table.schema.get_field_index("time"), "time", pa.array(_seconds(table["time"], source)))


def item_attributes(source: str, table: pa.Table) -> pa.Table:
    """What is known of the items: the columns of the file beside `source` (RecBole's `.item` or MovieLens's `movies.dat`), or else
    the columns `item` and `item_...` of the table. An item may have several rows, of which the first counts."""
    columns = [name for name in table.column_names if name.startswith("item_")]
    parts = [table.select(["item", *columns])] if columns else []
    if (file := file_of_items(source)) is not None:
        beside = read_table(file, {".item": _tsv, ".dat": lambda dat: _delimited(dat, "::", ["item", "item_title", "item_genres"])})
        names = [name.split(":")[0] for name in beside.column_names]
        beside = beside.rename_columns(["item", *names[1:]])
        parts.append(beside.set_column(0, "item", _text(beside["item"], "item", str(file))))
    return parts[-1] if parts else table.select(["item"]).slice(0, 0)


def file_of_items(source: str) -> Path | None:
    """The file of item attributes beside a file of interactions: RecBole's `.item` or MovieLens's `movies.dat`; None without
    one."""
    path = Path(source)
    beside = {".inter": path.with_suffix(".item"), ".dat": path.with_name("movies.dat")}.get(path.suffix)
    return beside if beside is not None and not is_database(source) and beside.is_file() else None


def read_table(path: Path, readers: Mapping[str, Reader] = TABLES) -> pa.Table:
    """Read a table with the reader for the file's suffix. Raises TenfoldError for an unknown suffix, or an unreadable file."""
    if path.suffix not in readers:
        raise TenfoldError(f"{path} is not a table: give a file that ends in {', '.join(readers)}.")
    try:
        return readers[path.suffix](path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError) as error:
        raise TenfoldError(f"{path} cannot be read as a table: {str(error).splitlines()[0].rstrip('.')}.") from None


def _from_file(path: Path) -> pa.Table:
    if not path.is_file():
        raise TenfoldError(f"There is no file of interactions {path}: give one, a database's URL, synthetic or {MOVIELENS}.")
    forms: dict[str, Reader] = {
        ".dat": lambda file: _delimited(file, "::", ["user", "item", "rating", "time"]),
        ".txt": lambda file: _delimited(file, " ", ["user", "item"]),
    }
    return read_table(path, {path.suffix: _tsv, **TABLES, **forms})


def _tsv(path: Path) -> pa.Table:
    return pa.csv.read_csv(path, parse_options=pa.csv.ParseOptions(delimiter="\t"))


def _delimited(path: Path, delimiter: str, columns: list[str]) -> pa.Table:
    """Read a file without a header. If it has only pairs of user and item, the line numbers are the times."""
    text = path.read_bytes().decode("latin-1" if delimiter == "::" else "utf-8")
    rows = [line.split(delimiter) if delimiter == "::" else line.split() for line in text.splitlines() if line.strip()]
    if bad := next((i for i, row in enumerate(rows, 1) if len(row) != len(columns)), 0):
        raise TenfoldError(f"Row {bad} of {path} has {len(rows[bad - 1])} fields, and not {len(columns)}: {', '.join(columns)}.")
    table = pa.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)) if rows else {c: [] for c in columns})
    for name in {"time", "rating"} & set(columns):
        table = table.set_column(table.schema.get_field_index(name), name, pc.cast(table[name], pa.float64()))
    return table if "time" in columns or "item_title" in columns else table.append_column("time", pa.array(np.arange(len(rows))))


def _from_database(source: str) -> pa.Table:
    try:
        from sqlalchemy import MetaData, Table, create_engine, select
        from sqlalchemy.exc import NoSuchTableError, SQLAlchemyError
    except ImportError:
        raise NotInstalled("Databases are read with SQLAlchemy: pip install 'tenfold[serve]'.") from None
    url, _, name = source.partition("#")
    try:
        engine = create_engine(url)
        with engine.connect() as connection:
            table = Table(name or TABLE, MetaData(), autoload_with=connection)
            rows = connection.execution_options(yield_per=100_000).execute(select(table)).mappings()
            parts = [pa.Table.from_pylist([dict(row) for row in part]) for part in rows.partitions()]
        engine.dispose()
    except NoSuchTableError:
        raise TenfoldError(f"The database has no table {name or TABLE!r}: name one after a # in the URL.") from None
    except (SQLAlchemyError, ImportError) as error:
        raise TenfoldError(f"The database cannot be read: {str(error).splitlines()[0].rstrip('.')}.") from None
    return pa.concat_tables(parts, promote_options="permissive") if parts else pa.table({name: [] for name in NAMES})


def _named(table: pa.Table, source: str) -> pa.Table:
    """The table with its columns renamed to user, item and time. Raises TenfoldError if one is missing."""
    names = [name.split(":")[0] for name in table.column_names]  # RecBole writes user_id:token
    found = {kind: next((names.index(known) for known in NAMES[kind] if known in names), None) for kind in NAMES}
    if missing := [kind for kind, place in found.items() if place is None]:
        raise TenfoldError(f"{source} has no column {missing[0]!r}, only {', '.join(names)}: rename one.")
    ours = {place: kind for kind, place in found.items()}
    return table.rename_columns([ours.get(i, name) for i, name in enumerate(names)])


def _text(column: pa.ChunkedArray, name: str, source: str) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise TenfoldError(f"The column {name} of {source} has values of the type {column.type}: give text or numbers.") from None


def _seconds(column: pa.ChunkedArray, source: str) -> np.ndarray:
    """Times in seconds, int64, from numbers (whose unit is guessed from their size, `UNITS`), dates, or text of either."""
    try:
        if pa.types.is_string(column.type):
            try:
                column = column.cast(pa.float64())
            except pa.ArrowInvalid:
                column = column.cast(pa.timestamp("us"))
        if pa.types.is_temporal(column.type):
            return column.cast(pa.timestamp("s"), safe=False).cast(pa.int64()).to_numpy()
        numbers = column.cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all() or np.abs(numbers).max() > 1e20:
        raise TenfoldError(f"The column time of {source} has values that are no times, such as {column[0]}: give seconds or dates.")
    return (numbers / 1000.0 ** np.searchsorted(UNITS, np.median(np.abs(numbers)))).astype(np.int64)
