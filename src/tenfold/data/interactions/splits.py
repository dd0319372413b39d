"""Splits of interactions in time: which part of each user's history is for training, validation and test.

Histories are sorted by time, so a split is given by the ends of these three parts in each history.
"""

from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from msgspec import Struct

from tenfold.spec.ranges import Share

Held = Literal["validation", "test"]


class Split(Struct, frozen=True):
    """How events are split.

    `temporal`: of all events sorted by time, those from the share `begin` up to the share `end` are the test, those of the share
    `validation` before are the validation, and earlier ones are for training. These moments are the same for all users, so no
    training event is later than a test event.

    `leave-one-out`: every user's last event is the test, the one before it the validation, as is common in papers.
    """

    kind: Literal["temporal", "leave-one-out"] = "temporal"
    begin: Share = 0.9
    end: Share = 1.0
    validation: Share = 0.1

    @property
    def name(self) -> str:
        """A name that identifies the split and its shares."""
        return self.kind if self.kind == "leave-one-out" else f"{self.kind}-{self.begin:g}-{self.end:g}-{self.validation:g}"


class Ends(NamedTuple):
    """The ends of the parts of each user's history, int64 [users] each; items whose first event is at the time `until` (seconds) or
    later are unknown in training."""

    training: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    until: float = np.inf


def ends(split: Split, offsets: np.ndarray, times: np.ndarray) -> Ends:
    """The ends of a split. The history of user u is events `offsets[u]` to `offsets[u + 1]`, whose `times` int64 [events] ascend.

    In leave-one-out, all events of a user with fewer than three are for training.
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
    """`cuts` temporal splits whose tests, one after another, cover the events from the share `first` to the end."""
    edges = np.linspace(first, 1.0, cuts + 1)
    return [Split(begin=float(a), end=float(b)) for a, b in pairwise(edges)]
