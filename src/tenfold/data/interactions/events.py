"""Interactions ready to train on: each user's items as tokens in order of time, split into training and held-out events.

Token 0 begins every history. Items are numbered from 1 on in the order in which they first appear; those that first appear after
the end of the training events have tokens beyond the vocabulary.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from tenfold.data.interactions.splits import Ends, Held, Split, ends
from tenfold.data.text.batches import shuffled
from tenfold.model.io.tokenizer import read_tokenizer
from tenfold.spec.errors import TenfoldError

FILE = "events.parquet"
ITEMS = "items.parquet"
QUERIES_PER_USER = 20  # the most; they are spread evenly over the user's held-out events


def item_names(directory: Path) -> list[str]:
    """The names of the items by token, from the tokenizer in a folder."""
    known = read_tokenizer(directory).get_vocab()
    return sorted(known, key=known.__getitem__)


class Rows(NamedTuple):
    """The rows of a batch: `tokens` int64 [rows, T]; `targets` int64 [rows, T], where -100 is ignored; `times` int64 [rows, T +
    1] in seconds, of each token and of the item after the last; `events` int64 [rows, T], the number of each token's event, or
    -1."""

    tokens: np.ndarray
    targets: np.ndarray
    times: np.ndarray
    events: np.ndarray


class Queries(NamedTuple):
    """The queries of an evaluation: for each its `user` int64 [queries], the tokens and times of the history before the event, and
    the token (`targets`) and time (`now`) of the event. Histories leave out tokens beyond the vocabulary; `targets` keeps them, and
    they count as missed."""

    user: np.ndarray
    histories: list[np.ndarray]
    times: list[np.ndarray]
    targets: np.ndarray
    now: np.ndarray


@dataclass(frozen=True)
class Interactions:
    """All events, sorted by user and time: `items` int [events] are tokens, `times` int [events] seconds; those of user u are
    `offsets[u]` to `offsets[u + 1]`."""

    directory: Path
    split: Split
    vocab_size: int
    items: np.ndarray
    times: np.ndarray
    offsets: np.ndarray

    @cached_property
    def ends(self) -> Ends:
        return ends(self.split, self.offsets, self.times)

    @cached_property
    def users(self) -> np.ndarray:
        """The numbers of the users who have training events, int64."""
        return np.flatnonzero(self.ends.training)

    @cached_property
    def training(self) -> np.ndarray:
        """The numbers of the training events, int64, sorted by user and time."""
        place = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], np.diff(self.offsets))
        return np.flatnonzero(place < np.repeat(self.ends.training, np.diff(self.offsets)))

    @cached_property
    def counts(self) -> np.ndarray:
        """The number of training events of each token, int64 [vocab_size]."""
        return np.bincount(self.items[self.training], minlength=self.vocab_size)

    @cached_property
    def user_of(self) -> np.ndarray:
        """The user of each event, int64 [events]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @cached_property
    def names(self) -> list[str]:
        """The names of the items by token; `names[0]` is that of the token that begins a history."""
        return item_names(self.directory)

    def signal(self, column: str) -> pa.ChunkedArray:
        """Another column of the table, by event. Raises TenfoldError if there is none of this name."""
        schema = pa.parquet.read_schema(self.directory / FILE)
        if column not in schema.names:
            raise TenfoldError(f"The interactions have no column {column!r}: they have {', '.join(schema.names)}.")
        return pa.parquet.read_table(self.directory / FILE, columns=[column])[column]

    def span(self, held: Held) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last (excluded) held-out event in each user's history, int64 [users] each."""
        e = self.ends
        return {"validation": (e.training, e.validation), "test": (e.validation, e.test)}[held]

    def asked(self, held: Held, most: int | None = None) -> np.ndarray:
        """The numbers of the users who have held-out events, int64; at most `most` of them, evenly spread."""
        first, last = self.span(held)
        users = np.flatnonzero(last > first)
        return users if most is None or len(users) <= most else users[np.linspace(0, len(users) - 1, most).astype(np.int64)]

    def held_out(self, held: Held, most: int | None = None) -> Queries:
        """The queries for the held-out events: at most `QUERIES_PER_USER` for each user, and of at most `most` users."""
        first, last = self.span(held)
        asked = np.concatenate([_spread(u, first[u], last[u]) for u in self.asked(held, most)] or [_NONE])
        begins, places = self.offsets[asked[:, 0]], self.offsets[asked[:, 0]] + asked[:, 1]
        known = [(s := slice(a, b), self.items[s] < self.vocab_size) for a, b in zip(begins, places, strict=True)]
        histories, times = ([of[s][k].astype(np.int64) for s, k in known] for of in (self.items, self.times))
        return Queries(asked[:, 0], histories, times, self.items[places].astype(np.int64), self.times[places])

    def batch(self, step: int, rows: slice, *, batch_size: int, seq_len: int, seed: int) -> Rows:
        """`rows` of the `batch_size` rows of a step, a pure function of (seed, step). In every epoch each user has one row, which
        begins at a random place in the user's training events."""
        sample = np.arange(batch_size, dtype=np.int64) + step * batch_size
        users = self.users[shuffled(sample, len(self.users), seed)[rows]]
        length = self.ends.training[users]
        places = np.random.default_rng((seed, step)).random(batch_size)[rows]
        first = (places * np.maximum(1, length - seq_len + 1)).astype(np.int64)
        return self.window(users, first, length, seq_len)

    def newest(self, users: np.ndarray, begin: np.ndarray, length: np.ndarray, seq_len: int) -> Rows:
        """A row for each user: the last `seq_len` of the first `length` events, of which those from event `begin` on are targets.
        Items beyond the vocabulary are no targets, and token 0 as inputs."""
        rows = self.window(users, np.maximum(0, length - seq_len), length, seq_len)
        place = np.maximum(0, length - seq_len)[:, None] + np.arange(seq_len)
        rows.targets[(place < begin[:, None]) | (rows.targets >= self.vocab_size)] = -100
        rows.tokens[rows.tokens >= self.vocab_size] = 0
        return rows

    def window(self, users: np.ndarray, first: np.ndarray, length: np.ndarray, seq_len: int) -> Rows:
        """A row for each user: the events from `first` on, up to event `length`; token 0 comes before event 0."""
        place = first[:, None] + np.arange(seq_len + 1) - 1  # the event of each token, and of the item after the last one
        event = self.offsets[users][:, None] + place
        there = place < length[:, None]
        event = np.where(there & (place >= 0), event, -1)
        tokens = np.where(event >= 0, self.items[event], 0).astype(np.int64)
        when = self.times[np.clip(self.offsets[users][:, None] + place, self.offsets[users][:, None], _last(self, users, length))]
        targets = np.where(there[:, 1:], tokens[:, 1:], -100)
        return Rows(tokens[:, :-1] * there[:, :-1], targets, when, event[:, :-1])


_NONE = np.empty((0, 2), np.int64)


def _last(of: Interactions, users: np.ndarray, length: np.ndarray) -> np.ndarray:
    return (of.offsets[users] + length - 1)[:, None]


def _spread(user: int, first: int, last: int) -> np.ndarray:
    places = np.unique(np.linspace(first, last - 1, min(QUERIES_PER_USER, last - first)).round().astype(np.int64))
    return np.stack((np.full_like(places, user), places), 1)
