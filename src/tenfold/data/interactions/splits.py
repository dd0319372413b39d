"""Splits of interactions in time: which part of each user's history is for training, and which are held out.

Histories are in the order of time, so all that a split needs is where in each its training, its validation and its test end.
"""

from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from msgspec import Struct

from tenfold.spec.ranges import Share

Held = Literal["validation", "test"]


class Split(Struct, frozen=True):
    """`temporal`: the test are the events from the share `begin` of all on, up to the share `end`; the validation are those of the
    share `validation` before. All users share these moments, so nothing that is learned from comes after what is asked about.

    `leave-one-out`: the test is every user's last event, the validation the one before it, as papers have it.
    """

    kind: Literal["temporal", "leave-one-out"] = "temporal"
    begin: Share = 0.9
    end: Share = 1.0
    validation: Share = 0.1

    @property
    def name(self) -> str:
        return self.kind if self.kind == "leave-one-out" else f"{self.kind}-{self.begin:g}-{self.end:g}-{self.validation:g}"


class Ends(NamedTuple):
    """Where parts of each user's history end, int64 [users] each, and the moment, in seconds, from which items are new."""

    training: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    until: float = np.inf


def ends(split: Split, offsets: np.ndarray, times: np.ndarray) -> Ends:
    """The ends of a split; the history of user u is events `offsets[u]` to `offsets[u + 1]`, whose times int64 [events] rise.

    Of leave-one-out, users of fewer than three events are trained on and not asked about.
    """
    length = np.diff(offsets)
    if split.kind == "leave-one-out":
        held = np.where(length > 2, 1, 0)
        return Ends(length - 2 * held, length - held, length)
    shares = np.clip([split.begin - split.validation, split.begin, split.end], 0, 1)
    moments = np.append(np.sort(times), np.iinfo(np.int64).max)[np.round(shares * len(times)).astype(np.int64)]
    users = np.repeat(np.arange(len(length)), length)
    training, validation, test = (np.bincount(users[times < moment], minlength=len(length)) for moment in moments)
    return Ends(training, validation, test, float(moments[0]))


def rolling(cuts: int, first: float = 0.5) -> list[Split]:
    """So many temporal splits, whose tests together are the events from the share `first` on, each a part of them."""
    edges = np.linspace(first, 1.0, cuts + 1)
    return [Split(begin=float(a), end=float(b)) for a, b in pairwise(edges)]
