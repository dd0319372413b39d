"""The gate of rankers: a new ranker is released only if it ranks what users took after its training better than the old one does.

The measure is NDCG at 10, as in `rank evaluate`, paired by user. As in `learn.gate`, better means beyond noise (95 %); a forecast
from one half of the users is written down before the other half is measured.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet

from tenfold.learn.checks import Check
from tenfold.learn.data import write_versioned
from tenfold.learn.gate import read_gate
from tenfold.learn.statistics import PairedTest, paired_test, predicted
from tenfold.model.io.huggingface import weights_hash
from tenfold.model.path import model_path
from tenfold.rank.metrics import quality
from tenfold.rank.ranker import Ranker
from tenfold.spec.files import file_sha256
from tenfold.spec.forecasts import Forecast, forecast, outcome

TOGETHER = 256  # histories scored at once
PER_USER = 20  # held-out events of a user that are asked about, from the first on


class Asked(NamedTuple):
    """A history by the items' names and times, and the item that `came` next, at the time `now` (both in seconds)."""

    user: str
    items: list[str]
    times: list[float]
    came: str
    now: float


def gate(new: Path, old: Path, home: Path) -> dict[str, Any]:
    """Compare the rankers `new` and `old` on the held-out events in `new`'s folder `data`; returns the content of its gate.json.

    A verdict that exists for the same weights and data is returned as it is. The forecast is kept in `home`. Raises TenfoldError
    where too few users are held out.
    """
    files = {part: new / "data" / f"{part}.parquet" for part in ("train", "held_out")}
    hashes = {"new": weights_hash(model_path(new)), "old": weights_hash(model_path(old))}
    hashes |= {part: file_sha256(file) for part, file in files.items()}
    key = f"rank/gate/{hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:12]}"
    if not (new / "gate.json").exists() or read_gate(new)["forecast"] != key:
        names = {"new": str(new.resolve()), "old": str(old.resolve()), "hashes": hashes}
        write_versioned(new / "gate.json", {**names, **_judge(model_path(new), model_path(old), home, key, files)})
    judged = read_gate(new)
    outcome(home, key, judged["test"]["mean"])
    return judged


def _judge(new: Path, old: Path, home: Path, key: str, files: dict[str, Path]) -> dict[str, Any]:
    asked = held_out(files["train"], files["held_out"])
    halves: list[list[Asked]] = [[], []]
    for one in asked:
        halves[int(hashlib.sha256(one.user.encode()).hexdigest()[:8], 16) % 2].append(one)
    rankers = Ranker.load(new), Ranker.load(old)

    def worse(some: list[Asked]) -> np.ndarray:
        """NDCG of the old ranker minus that of the new one, by user: below zero where the new one is better."""
        return by_user(some, ndcg(rankers[1], some) - ndcg(rankers[0], some))

    quantiles = predicted(list(worse(halves[0])), len({one.user for one in halves[1]}))
    data = {name: file_sha256(file) for name, file in files.items()}
    forecast(home, Forecast(key=key, who="rank", kind="paired_difference", unit="NDCG", quantiles=quantiles, data=data))
    test = paired_test(list(worse(halves[1])))
    known = ndcg(rankers[0], halves[1])
    above = paired_test(list(by_user(halves[1], popularity_ndcg(files["train"], halves[1]) - known)))
    checks = [_check("better", "better", test), _check("above_popularity", "above popularity's", above)]
    refused = [check for check in checks if not check.passed]
    return {
        "passed": not refused, "reason": " ".join(check.says for check in refused or checks[:1]),
        "refused_by": [check.name for check in refused], "checks": [asdict(check) for check in checks],
        "forecast": key, "unit": "NDCG", "test": asdict(test), "quantiles": quantiles,
    }  # fmt: skip


def _check(name: str, what: str, worse: PairedTest) -> Check:
    """Whether the new ranker is better beyond noise; `worse` is the test of the other minus the new."""
    low, high = -worse.t_interval[1], -worse.t_interval[0]
    says = f"NDCG@10 is {what} by {-worse.mean:+.4f} (95 %: {low:+.4f} to {high:+.4f})."
    return Check(name, worse.passed, says, -worse.mean, 0.0, (low, high))


def held_out(train: Path, later: Path) -> list[Asked]:
    """What each user took in the table `later`, with the history before it from both tables, which are sorted by time.

    Items that the user had before are not asked about, and at most `PER_USER` events of a user.
    """
    had: dict[str, tuple[list[str], list[float]]] = {}
    for row in pyarrow.parquet.read_table(train, columns=["user", "item", "time"]).to_pylist():
        items, times = had.setdefault(row["user"], ([], []))
        items.append(row["item"])
        times.append(row["time"])
    asked, count = [], Counter[str]()
    for row in pyarrow.parquet.read_table(later, columns=["user", "item", "time"]).to_pylist():
        items, times = had.setdefault(row["user"], ([], []))
        count[row["user"]] += 1
        if row["item"] not in items and count[row["user"]] <= PER_USER:
            asked.append(Asked(row["user"], list(items), list(times), row["item"], row["time"]))
        items.append(row["item"])
        times.append(row["time"])
    return asked


def ndcg(ranker: Ranker, asked: Sequence[Asked]) -> np.ndarray:
    """NDCG at 10 of each question, float64 [asked]; 0 where the ranker does not know the item that came."""

    def scores(some: Sequence[Asked]) -> np.ndarray:
        return ranker.score([ranker.history(one.items, one.times, one.now) for one in some])

    return _ndcg(scores, ranker.names, asked)


def popularity_ndcg(train: Path, asked: Sequence[Asked]) -> np.ndarray:
    """NDCG at 10 of each question when items are ranked by how often they were taken in the table `train`."""
    taken = Counter(pyarrow.parquet.read_table(train, columns=["item"])["item"].to_pylist())
    counts = np.array([0, *taken.values()])
    return _ndcg(lambda some: np.tile(counts, (len(some), 1)), ["", *taken], asked)


def _ndcg(scores: Callable[[Sequence[Asked]], np.ndarray], names: list[str], asked: Sequence[Asked]) -> np.ndarray:
    """NDCG at 10 by scores [asked, names]; name 0 is no item."""
    token, found = {name: i for i, name in enumerate(names) if i}, [np.empty(0)]
    for some in (asked[first : first + TOGETHER] for first in range(0, len(asked), TOGETHER)):
        targets = np.array([token.get(one.came, len(names)) for one in some])
        histories = [np.array([token[item] for item in one.items if item in token], np.int64) for one in some]
        found.append(quality(scores(some), targets, histories)["ndcg_10"])
    return np.concatenate(found)


def by_user(asked: Sequence[Asked], values: np.ndarray) -> np.ndarray:
    """The mean of `values` [asked] of each user, in the order of the users' names."""
    _, user = np.unique([one.user for one in asked], return_inverse=True)
    return np.bincount(user, values) / np.bincount(user)
