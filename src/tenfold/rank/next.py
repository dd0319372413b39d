"""The next ranker: train on the events of the store, judge the new ranker beside the old one, and put it in service.

The newest share of the interactions is held out for the gate; the ranker is trained on everything before, so that it learns nothing
of the future. As in `learn`, `lineage.json` lists the users whose events a ranker was trained on, and the ranker before it.
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
from tenfold.spec.files import atomic_folder, file_sha256
from tenfold.spec.versions import read_document

# The gate holds the newest events out itself, so the run before it holds out little.
NEWEST = {"test_begin": 0.98, "validation": 0.02}
FOLDER = "ranking"  # in the home: the rankers trained on events, and `release.json` with the one in service
Train = Callable[[Path, Path], object]  # (table of interactions, directory of the run) -> trains the run to its end


@dataclass(frozen=True)
class Next:
    """What the next ranker is made of: its name, the event store, an earlier table of interactions, and the held-out share."""

    name: str
    events: str
    base: str | None = None
    held_out: float = 0.1
    model: Path | None = None  # the old ranker; None: the one that was released last


def train_next(home: Path, wanted: Next, train: Train, server: Server | None = None) -> dict[str, Any]:
    """Train, judge and release the next ranker in `home`; continues where an earlier call was stopped.

    Returns the content of `gate.json` and the path of the ranker `in_service`. Raises TenfoldError where no old ranker is known, or
    there are no events.
    """
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
    """Write `data` and `lineage.json`, once."""
    if (new / "lineage.json").exists():
        made = read_document(new / "lineage.json", 1, f"delete {new}")
        if made["source"] != without_secrets(wanted.events):
            raise TenfoldError(f"{new} was made of {made['source']}: give the new ranker another --name.")
        return
    store = Events.open(wanted.events)
    found = gather(store, wanted.base)
    if not found.from_store:
        raise TenfoldError(f"{without_secrets(wanted.events)} has no events to learn from: let people use the server first.")
    cut = len(found.table) - max(1, round(wanted.held_out * len(found.table)))
    parts = {"train": found.table.slice(0, cut), "held_out": found.table.slice(cut)}
    if not cut:
        raise TenfoldError("All interactions are held out, and none is left to learn from: gather more, or lower --held-out.")
    with atomic_folder(new / "data", replace=True) as scratch:
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
