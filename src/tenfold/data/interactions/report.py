"""A report of what to know about interactions before training on them: ties in time, repeats, bots, rare items, leaks."""

from pathlib import Path
from typing import Any

import numpy as np

from tenfold.data.interactions.events import Interactions
from tenfold.spec.files import write_json

REPORT = "report.json"
BOT = 100  # a user with more than 1,000 events and this many times the median may be a bot
RARE = 5  # an item with fewer events is rare: a model learns little about it


def write_report(directory: Path, of: Interactions, copies: int) -> None:
    """Write `report.json` beside the interactions; `copies` is the number of rows that were left out as copies of others."""
    write_json(directory / REPORT, report(of, copies))


def report(of: Interactions, copies: int = 0) -> dict[str, Any]:
    """The report: counts, shares of events (0 to 1), and `warnings`, which are sentences."""
    length, item_counts = np.diff(of.offsets), np.bincount(of.items)[1:]
    item_counts = np.sort(item_counts[item_counts > 0])[::-1]
    user, same_user = of.user_of, of.user_of[1:] == of.user_of[:-1]
    tied = same_user & (of.times[1:] == of.times[:-1])
    pairs = len(np.unique(user * (int(of.items.max()) + 1) + of.items))
    bots = int((length > max(1000, BOT * np.median(length))).sum())
    found = {
        "events": len(of.items),
        "users": len(length),
        "items": len(item_counts),
        "copies_left_out": copies,
        "first": str(np.datetime64(int(of.times.min()), "s")),
        "last": str(np.datetime64(int(of.times.max()), "s")),
        "tied_share": _share(np.concatenate((tied, [False])) | np.concatenate(([False], tied))),
        "repeated_share": 1 - pairs / len(of.items),
        "bots": bots,
        "bots_share_of_events": float(length[length > max(1000, BOT * np.median(length))].sum() / len(of.items)),
        "median_history": float(np.median(length)),
        "longest_history": int(length.max()),
        "top_1_percent_of_items": float(item_counts[: max(1, len(item_counts) // 100)].sum() / len(of.items)),
        "rare_items_share": _share(item_counts < RARE),
        **_of_the_split(of),
    }
    return found | {"warnings": _warnings(found)}


def _of_the_split(of: Interactions) -> dict[str, Any]:
    test = of.held_out("test")
    begin = np.median(test.now)
    return {
        "split": of.split.name,
        "training_events": len(of.training),
        "test_queries": len(test.targets),
        "test_users": len(np.unique(test.user)),
        "test_users_without_history": _share(np.array([not len(history) for history in test.histories])),
        "test_items_not_in_training": _share(_unseen(of, test.targets)),
        "training_after_half_of_the_test": _share(of.times[of.training] > begin),
    }


def _unseen(of: Interactions, targets: np.ndarray) -> np.ndarray:
    return np.append(of.counts, 0)[np.minimum(targets, of.vocab_size)] == 0


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else 0.0


def _warnings(found: dict[str, Any]) -> list[str]:
    few, late, bots = 0.05, found["training_after_half_of_the_test"], found["bots_share_of_events"]
    said = [
        (
            found["tied_share"] > few,
            f"{found['tied_share']:.0%} of the events have the same time as another event of the user: they stay in the order of "
            "the table, and another order gives other results.",
        ),
        (
            late > few,
            f"{late:.0%} of the training events are later than half of the test events: the metrics compare with those in papers, "
            "but a model in use cannot know the future; the split temporal has no such leak.",
        ),
        (
            found["bots"] > 0,
            f"{found['bots']} users have more than 1,000 events and more than {BOT} times the median, {bots:.0%} of all events: "
            "they may be bots.",
        ),
        (
            found["test_items_not_in_training"] > few,
            f"{found['test_items_not_in_training']:.0%} of the test events are of items that do not occur in training: a model "
            "without a content tower misses them.",
        ),
        (
            found["repeated_share"] > few,
            f"{found['repeated_share']:.0%} of the events repeat an item of the same user: the metrics leave out the items that a "
            "user had before, except the item of the event.",
        ),
        (
            found["first"] == found["last"],
            "All events have the same time: histories are in the order of the table, and a temporal split means nothing.",
        ),
    ]
    return [sentence for holds, sentence in said if holds]
