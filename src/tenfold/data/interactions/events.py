"""Interactions ready to train on: each user's items in the order of time as tokens, split into training and held-out events.

Token 0 begins every history; items are tokens from 1 on, in the order in which they first appear. Those that first appear after the
training has ended have tokens past the vocabulary.
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
QUERIES_PER_USER = 20  # at most, evenly spread over a user's held-out events


def item_names(directory: Path) -> list[str]:
    """The items' names by token, as the tokenizer of a folder has them."""
    known = read_tokenizer(directory).get_vocab()
    return sorted(known, key=known.__getitem__)


class Rows(NamedTuple):
    """Rows of a batch: `tokens` int64 [rows, T]; `targets` int64 [rows, T], -100 where there is none; `times` int64 [rows, T + 1]
    in seconds, of each token and of the item after the last; `events` int64 [rows, T], the number of each token's event or -1."""

    tokens: np.ndarray
    targets: np.ndarray
    times: np.ndarray
    events: np.ndarray


class Queries(NamedTuple):
    """Queries of an evaluation: the `user` int64 [queries] of each, the tokens and times of the history before, and the token and
    time of the event that came. Histories leave out tokens past the vocabulary; `targets` keeps them, and they count as missed."""

    user: np.ndarray
    histories: list[np.ndarray]
    times: list[np.ndarray]
    targets: np.ndarray
    now: np.ndarray


@dataclass(frozen=True)
class Interactions:
    """Events int [events] by user and time: `items` are tokens, `times` seconds; user u has those from `offsets[u]` on."""

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
        """The users who have training events."""
        return np.flatnonzero(self.ends.training)

    @cached_property
    def training(self) -> np.ndarray:
        """The numbers of the training events, int64, by user and time."""
        place = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], np.diff(self.offsets))
        return np.flatnonzero(place < np.repeat(self.ends.training, np.diff(self.offsets)))

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each token occurs in the training events, int64 [vocabulary]."""
        return np.bincount(self.items[self.training], minlength=self.vocab_size)

    @cached_property
    def user_of(self) -> np.ndarray:
        """The user of each event, int64 [events]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @cached_property
    def names(self) -> list[str]:
        """The items' names by token; `names[0]`, of the token that begins a history, is no item's name."""
        return item_names(self.directory)

    def signal(self, column: str) -> pa.ChunkedArray:
        """A further column of the table, by event. Raises TenfoldError where the interactions have none of this name."""
        schema = pa.parquet.read_schema(self.directory / FILE)
        if column not in schema.names:
            raise TenfoldError(f"The interactions have no column {column!r}: they have {', '.join(schema.names)}.")
        return pa.parquet.read_table(self.directory / FILE, columns=[column])[column]

    def span(self, held: Held) -> tuple[np.ndarray, np.ndarray]:
        """Where the held-out events begin and end in each user's history, int64 [users] each."""
        e = self.ends
        return {"validation": (e.training, e.validation), "test": (e.validation, e.test)}[held]

    def asked(self, held: Held, most: int | None = None) -> np.ndarray:
        """The users who have held-out events, int64; at most `most` of them, evenly spread."""
        first, last = self.span(held)
        users = np.flatnonzero(last > first)
        return users if most is None or len(users) <= most else users[np.linspace(0, len(users) - 1, most).astype(np.int64)]

    def held_out(self, held: Held, most: int | None = None) -> Queries:
        """For each event that is held out, at most `QUERIES_PER_USER` of a user and of at most `most` users, what came before it,
        and the event."""
        first, last = self.span(held)
        asked = np.concatenate([_spread(u, first[u], last[u]) for u in self.asked(held, most)] or [_NONE])
        begins, places = self.offsets[asked[:, 0]], self.offsets[asked[:, 0]] + asked[:, 1]
        known = [(s := slice(a, b), self.items[s] < self.vocab_size) for a, b in zip(begins, places, strict=True)]
        histories, times = ([of[s][k].astype(np.int64) for s, k in known] for of in (self.items, self.times))
        return Queries(asked[:, 0], histories, times, self.items[places].astype(np.int64), self.times[places])

    def batch(self, step: int, rows: slice, *, batch_size: int, seq_len: int, seed: int) -> Rows:
        """`rows` of the `batch_size` rows of a step, a pure function of (seed, step): in every epoch each user has one, which
        begins anywhere in what may be learned from."""
        sample = np.arange(batch_size, dtype=np.int64) + step * batch_size
        users = self.users[shuffled(sample, len(self.users), seed)[rows]]
        length = self.ends.training[users]
        places = np.random.default_rng((seed, step)).random(batch_size)[rows]
        first = (places * np.maximum(1, length - seq_len + 1)).astype(np.int64)
        return self.window(users, first, length, seq_len)

    def newest(self, users: np.ndarray, begin: np.ndarray, length: np.ndarray, seq_len: int) -> Rows:
        """The newest row of users' histories up to `length` events, of which those from the event `begin` on are targets. Items
        past the vocabulary are no targets, and token 0 on the way in."""
        rows = self.window(users, np.maximum(0, length - seq_len), length, seq_len)
        place = np.maximum(0, length - seq_len)[:, None] + np.arange(seq_len)
        rows.targets[(place < begin[:, None]) | (rows.targets >= self.vocab_size)] = -100
        rows.tokens[rows.tokens >= self.vocab_size] = 0
        return rows

    def window(self, users: np.ndarray, first: np.ndarray, length: np.ndarray, seq_len: int) -> Rows:
        """Rows of users' histories up to `length` events, from the event `first` on; before event 0 stands token 0."""
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
