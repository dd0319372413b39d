"""From what people did to the next ranker: yesterday's events, trained on, judged, and put in service.

The newest share of the events, by time, is held out for the gate; everything before is learned from, so that nothing of the future
is. `lineage.json` says whose events each ranker holds, and from which it came, as in `learn`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet

from tenfold.learn.data import write_versioned
from tenfold.learn.lineage import holders
from tenfold.learn.release import Server, release, released, released_before
from tenfold.model.io.huggingface import weights_hash
from tenfold.model.path import model_path
from tenfold.rank.events.interactions import gather
from tenfold.rank.events.store import Events
from tenfold.rank.gate import gate
from tenfold.spec.errors import TenfoldError, without_secrets
from tenfold.spec.files import file_sha256, whole_folder
from tenfold.spec.versions import read_document

NEWEST = {"test_begin": 0.98, "validation": 0.02}  # a run that the gate judges holds little out: the newest events are learned
FOLDER = "ranking"  # of the home: the rankers that came from events, and which one is in service
Train = Callable[[Path, Path], object]  # on interactions, in the directory of the run


@dataclass(frozen=True)
class Next:
    """What the next ranker is made of: the name of its folder, the store, an earlier table, and the share that is held out."""

    name: str
    events: str
    base: str | None = None
    held_out: float = 0.1
    model: Path | None = None  # in service now; where None, what was released last


def again(home: Path, wanted: Next, train: Train, server: Server | None = None) -> dict[str, Any]:
    """The gate's verdict, and `in_service`. Called again it goes on from where it was. Raises TenfoldError where it cannot."""
    rankers = home / FOLDER
    old = wanted.model or released_before(rankers, wanted.name)
    if old is None:
        raise TenfoldError(f"No ranker of {rankers} is in service: give --model.")
    new = rankers / wanted.name
    _data(new, old, wanted, rankers)
    train(new / "data" / "train.parquet", new)
    judged = gate(new, old, home)
    if judged["passed"]:
        release(new, rankers, server=server)
    in_service = released(rankers)
    return {**judged, "in_service": in_service["path"] if in_service else str(old)}


def _data(new: Path, old: Path, wanted: Next, rankers: Path) -> None:
    """`data` and `lineage.json`, made once."""
    if (new / "lineage.json").exists():
        made = read_document(new / "lineage.json", 1, f"delete {new}")
        if made["source"] != without_secrets(wanted.events):
            raise TenfoldError(f"{new} was made of {made['source']}: give the new ranker another --name.")
        return
    store = Events.open(wanted.events)
    found = gather(store, wanted.base)
    if not found.from_store:
        raise TenfoldError("Nobody has done anything since: the store has no events.")
    cut = len(found.table) - max(1, round(wanted.held_out * len(found.table)))
    parts = {"train": found.table.slice(0, cut), "held_out": found.table.slice(cut)}
    if not cut:
        raise TenfoldError("The events leave nothing to learn from: gather more, or hold out less.")
    with whole_folder(new / "data", replace=True) as scratch:
        for part, table in parts.items():
            pyarrow.parquet.write_table(table, scratch / f"{part}.parquet")
    source = without_secrets(wanted.events)
    users = {part: sorted(set(table["user"].to_pylist())) for part, table in parts.items()}
    present = store.users() | set(found.table["user"].to_pylist())
    people = {
        "users": users,
        "deleted_users_still_in": holders(rankers, source, present, ".parquet"),
        "left_out": dict(found.left_out),
    }
    begun = model_path(old)
    write_versioned(
        new / "lineage.json",
        {
            "source": source, "base": wanted.base and without_secrets(wanted.base), "events": found.from_store, "people": people,
            "init_from": {"path": str(begun.resolve()), "sha256": weights_hash(begun)},
            "data": {part: file_sha256(new / "data" / f"{part}.parquet") for part in parts},
        },
    )  # fmt: skip
