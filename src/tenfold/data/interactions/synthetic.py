"""Made interactions whose every probability is known, and with it the lowest loss and the best hit rate that a model can reach.

A table of them has a column `nats`: how surprising each event was to what drew it. Its mean is the lowest loss of any model.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from tenfold.spec.errors import TenfoldError, nearest

FOLLOW = 0.75
SYNTHETIC = "synthetic"
TEACHER = "teacher"
TOGETHER = 8192  # users that are drawn at once
STEP_S, SPREAD_S = 3600, 30 * 86400  # between a user's events, and between the first events of all


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
        """How likely every next item is after `drawn` int [users, events], up to a factor: [users, items]."""
        raise NotImplementedError

    def table(self) -> pa.Table:
        """The interactions, as a file would have them, and `nats`."""
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

    With probability `FOLLOW` the next item is of the cluster that follows the last item's, else of any; within a cluster the first
    are likelier. Nobody takes an item twice.
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
    """Softmax of a fixed random model of the last `order` items, whose directions matter less and less, as k^-`decay`: the longer
    one trains and the wider the student, the more of them it finds, so that its loss falls as a power of the compute."""

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
        """Vectors of the last items by their place [order, items, dim], of the next item [items, dim], and popularity [items]."""
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
    """The generator of `synthetic`, or of `teacher:users=200000,length=50`; None where the name is another's."""
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
        raise TenfoldError(f"The settings of {source} are numbers: write for example {name}:users=1000.") from None
