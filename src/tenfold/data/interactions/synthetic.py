"""Synthetic interactions drawn from known probabilities, so that the lowest loss and the best hit rate of any model are known.

Their table has a column `nats`: the negative logarithm of the probability of each event. Its mean is the lowest possible loss.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from tenfold.spec.errors import TenfoldError, nearest

FOLLOW = 0.75  # see ClusterChain
SYNTHETIC = "synthetic"
TEACHER = "teacher"
TOGETHER = 8192  # users that are drawn at a time
STEP_S, SPREAD_S = 3600, 30 * 86400  # between a user's events; the span of all users' first events


@dataclass(frozen=True)
class Made:
    """A generator of the events of a number of users, each with the same number of events."""

    users: int = 2000
    length: int = 20
    seed: int = 0

    @property
    def items(self) -> int:
        raise NotImplementedError

    def weights(self, drawn: np.ndarray) -> np.ndarray:
        """Unnormalised probabilities of the next item after `drawn` int [users, events]: [users, items]."""
        raise NotImplementedError

    def table(self) -> pa.Table:
        """Draw the interactions: a table with the columns user, item, time and nats."""
        rng = np.random.default_rng((self.seed, 1))
        parts = [self._draw(rng, min(TOGETHER, self.users - first)) for first in range(0, self.users, TOGETHER)]
        drawn, nats = (np.concatenate(part) for part in zip(*parts, strict=True))
        begin = np.random.default_rng((self.seed, 2)).integers(0, SPREAD_S, self.users)
        users = pa.DictionaryArray.from_arrays(np.arange(self.users).repeat(self.length), [f"user-{u}" for u in range(self.users)])
        items = pa.DictionaryArray.from_arrays(drawn.ravel(), [f"item-{i}" for i in range(self.items)])
        times = (begin[:, None] + STEP_S * np.arange(self.length)).ravel()
        columns = {"user": users, "item": items, "time": times, "nats": nats.astype(np.float32).ravel()}
        return pa.table({name: pa.chunked_array([c]) for name, c in columns.items()})

    def _draw(self, rng: np.random.Generator, users: int) -> tuple[np.ndarray, np.ndarray]:
        drawn, nats = np.empty((users, self.length), np.int32), np.empty((users, self.length))
        for i in range(self.length):
            weight = self.weights(drawn[:, :i])
            reached = weight.cumsum(1)
            at = (reached < rng.random((users, 1)) * reached[:, -1:]).sum(1)
            drawn[:, i], nats[:, i] = at, np.log(reached[:, -1] / np.take_along_axis(weight, at[:, None], 1)[:, 0])
        return drawn, nats


@dataclass(frozen=True)
class ClusterChain(Made):
    """A Markov chain over clusters of items; item i is in cluster i // `per_cluster`.

    With probability `FOLLOW` the next item is from the cluster that follows the last item's cluster, else from any; within a
    cluster the first items are likelier. No user has an item twice.
    """

    clusters: int = 24
    per_cluster: int = 10

    @property
    def items(self) -> int:
        return self.clusters * self.per_cluster

    @cached_property
    def _chance(self) -> np.ndarray:
        n = self.clusters
        chance = np.full((n, n), (1 - FOLLOW) / n)
        chance[np.arange(n), np.random.default_rng(self.seed).permutation(n)] += FOLLOW
        return chance

    def weights(self, drawn: np.ndarray) -> np.ndarray:
        p = np.tile(1 / np.sqrt(np.arange(1, self.per_cluster + 1)), (len(drawn), self.clusters))
        if drawn.shape[1]:
            p *= np.repeat(self._chance[drawn[:, -1] // self.per_cluster], self.per_cluster, axis=1)
            p[np.arange(len(p))[:, None], drawn] = 0
        return p


@dataclass(frozen=True)
class Teacher(Made):
    """The next item is drawn from the softmax of a fixed random linear model of the last `order` items.

    The k-th of its `dim` dimensions is scaled by k^-`decay`. A wider student that trains longer learns more of them, so its loss
    falls as a power of the compute.
    """

    length: int = 50
    n_items: int = 1000
    dim: int = 64
    order: int = 4
    decay: float = 0.5
    strength: float = 4.0

    @property
    def items(self) -> int:
        return self.n_items

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The vectors of the last items by position [order, items, dim], of the next item [items, dim], and log-popularity
        [items]."""
        rng, n = np.random.default_rng((self.seed, 3)), self.n_items
        spectrum = np.arange(1, self.dim + 1) ** -self.decay
        spectrum *= self.strength / np.linalg.norm(spectrum)
        fading = 2.0 ** -np.arange(1, self.order + 1)[:, None, None]
        before = rng.standard_normal((self.order, n, self.dim)) * fading * spectrum
        after, popular = rng.standard_normal((n, self.dim)), -np.log(np.arange(1, n + 1)) / 2
        return before.astype(np.float32), after.astype(np.float32), popular.astype(np.float32)

    def weights(self, drawn: np.ndarray) -> np.ndarray:
        before, after, popular = self._tables
        state = np.zeros((len(drawn), self.dim), np.float32)
        for back in range(min(self.order, drawn.shape[1])):
            state += before[back, drawn[:, -1 - back]]
        return np.exp(state @ after.T + popular)


def made(source: str) -> Made | None:
    """The generator of `synthetic`, or of `teacher:users=200000,length=50`; None for any other source. Raises TenfoldError."""
    name, _, text = source.partition(":")
    kind = {SYNTHETIC: ClusterChain, TEACHER: Teacher}.get(name)
    if kind is None:
        return None
    known: dict[str, Any] = {f.name: type(f.default) for f in fields(kind)}
    given = [part.partition("=") for part in filter(None, text.split(","))]
    if bad := next((key for key, _, _ in given if key not in known), None):
        raise TenfoldError(f"{name} has no setting {bad!r}{nearest(bad, known)}: it has {', '.join(known)}.")
    try:
        return kind(**{key: known[key](value) for key, _, value in given})
    except ValueError:
        raise TenfoldError(f"The settings of {source} must be numbers: write for example {name}:users=1000.") from None
