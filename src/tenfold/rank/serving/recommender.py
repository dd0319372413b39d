"""Recommendation in two stages in one process: retrieve the best items of the catalogue, or score the candidates of a request; then
fill the list by rules and diversity.

The vector of a history is computed once and cached; any number of candidates is scored against it. A candidate's score depends on
the history, not on the other candidates.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tenfold.rank.ranker import History, Ranker
from tenfold.rank.serving.catalogue import Catalogue, read_catalogue, read_items
from tenfold.rank.serving.index import Found, make_index
from tenfold.rank.serving.places import List, Places, Pool, Rules, fill
from tenfold.rank.serving.settings import RankSettings
from tenfold.spec.errors import TenfoldError, nearest

T = TypeVar("T")
TOGETHER = 64  # histories computed at once
BESIDE = 512  # candidates whose objectives are predicted at once
NEXT = "next"  # the name of the logit of the next item among the objectives


@dataclass(frozen=True)
class Query:
    """A request for one user, in tokens: `k` items of `candidates`, or of the whole catalogue, without those of `left_out`."""

    history: History
    k: int
    candidates: Sequence[int] | None = None
    left_out: frozenset[int] = frozenset()
    rules: Rules = field(default_factory=Rules)
    objectives: Mapping[str, float] = field(default_factory=dict)


class Hits(NamedTuple):
    """How often a history was looked up in the cache, and found there."""

    asked: int
    found: int


class Recommender:
    """A ranker, its catalogue and its index."""

    def __init__(self, ranker: Ranker, settings: RankSettings = RankSettings(), catalogue: Catalogue | None = None):
        ranker.model.requires_grad_(False)  # its item vectors may be the parameter itself
        self.ranker, self.settings = ranker, settings
        self.catalogue = catalogue or Catalogue(len(ranker.names))
        self.index = make_index(settings.index, ranker.items)
        self._vectors: OrderedDict[History, Tensor] = OrderedDict()
        self.hits = Hits(0, 0)

    @classmethod
    def load(cls, path: Path, settings: RankSettings = RankSettings()) -> "Recommender":
        """The recommender of a finished run, or of its folder `model`. Raises TenfoldError where there is no ranker.

        New items of the table `settings.items` are added where the model can rank them by their content.
        """
        ranker = Ranker.load(path)
        if settings.items is not None and ranker.extras.content is not None:
            ranker.add_items(read_items(settings.items))
        return cls(ranker, settings, read_catalogue(settings.items, ranker.names))

    def add_items(self, items: pa.Table) -> int:
        """Add new items, which are ranked by their content; returns the number of all items. See `Ranker.add_items`."""
        catalogue = self.catalogue.extended(items, list(self.ranker.new_rows(items)))  # may raise, so before any change
        self.ranker.add_items(items)
        self.catalogue = catalogue
        self.index.grow(self.ranker.items)
        return len(self.ranker.names) - 1

    def answer(self, queries: Sequence[Query], rng: np.random.Generator) -> list[List | TenfoldError]:
        """A list for each query, or the error that says why there is none."""
        answers: list[List | TenfoldError] = []
        for query, places in zip(queries, self.places(queries), strict=True):
            answers.append(places if isinstance(places, TenfoldError) else fill(places, query.k, rng))
        return answers

    def places(self, queries: Sequence[Query]) -> list[Places | TenfoldError]:
        """The places of each query, not filled yet, or the error."""
        if not queries:
            return []
        found = self._found(queries, self._users([query.history for query in queries]))
        pairs = zip(queries, found, strict=True)
        return [one if isinstance(one, TenfoldError) else _or_error(self._places, query, one) for query, one in pairs]

    def _found(self, queries: Sequence[Query], users: Tensor) -> list[Found | TenfoldError]:
        """The pool of each query; queries of the whole catalogue with the same filter are searched together."""
        made: dict[int, Found | TenfoldError] = {}
        together: dict[str, list[int]] = {}
        for i, query in enumerate(queries):
            if query.candidates is None:
                together.setdefault(repr(query.rules.where), []).append(i)
            else:
                made[i] = _or_error(self._scored, query, users[i])
        for numbers in together.values():
            found = _or_error(self._searched, [queries[i] for i in numbers], users[numbers])
            made |= dict.fromkeys(numbers, found) if isinstance(found, TenfoldError) else dict(zip(numbers, found, strict=True))
        return [made[i] for i in range(len(queries))]

    def _searched(self, queries: list[Query], users: Tensor) -> list[Found]:
        """The pools of queries of the whole catalogue with the same filter."""
        most = max(self.settings.pool, *(query.k for query in queries))
        allowed = self.catalogue.allowed(queries[0].rules.where)
        return self.index.search(users, most, [sorted(query.left_out) for query in queries], allowed)

    def _scored(self, query: Query, user: Tensor) -> Found:
        """All candidates of a query, the best first."""
        tokens = np.array([c for c in dict.fromkeys(query.candidates or ()) if c and c not in query.left_out], np.int64)
        if (allowed := self.catalogue.allowed(query.rules.where)) is not None:
            tokens = tokens[allowed.numpy()[tokens]]
        scores = (self.ranker.items[torch.from_numpy(tokens)] @ user).numpy()
        best = np.argsort(-scores, kind="stable")
        return Found(tokens[best], scores[best])

    def _places(self, query: Query, found: Found) -> Places:
        found = self._weighed(query, found) if query.objectives else found
        vectors = (
            self.ranker.items[torch.from_numpy(found.tokens)].numpy() if query.rules.diversity else np.zeros((len(found.tokens), 1))
        )
        return Places(Pool(found.tokens, found.scores, vectors), query.rules, self.catalogue, self.settings.explore)

    def _weighed(self, query: Query, found: Found) -> Found:
        """The same items, ranked by the weighted sum of the objectives of the query."""
        known = [NEXT, *self.ranker.objectives]
        if wrong := [name for name in query.objectives if name not in known]:
            raise TenfoldError(
                f"The model predicts no {wrong[0]!r}{nearest(wrong[0], known)}: its objectives are {', '.join(known)}."
            )
        scores = query.objectives.get(NEXT, 0.0) * found.scores.astype(float)
        if set(query.objectives) != {NEXT}:
            for first in range(0, len(found.tokens), BESIDE):
                some = slice(first, first + BESIDE)
                predicted = self.ranker.predict(query.history, found.tokens[some])
                scores[some] += sum(w * predicted[name] for name, w in query.objectives.items() if name != NEXT)
        best = np.argsort(-scores, kind="stable")
        return Found(found.tokens[best], scores[best])

    def _users(self, histories: Sequence[History]) -> Tensor:
        """The vector of each history, from the cache, or computed in batches of histories of about the same length."""
        missing = sorted({h for h in histories if h not in self._vectors}, key=lambda h: len(h.items))
        self.hits = Hits(self.hits.asked + len(histories), self.hits.found + len(histories) - len(missing))
        made: dict[History, Tensor] = {}
        for some in (missing[first : first + TOGETHER] for first in range(0, len(missing), TOGETHER)):
            made |= dict(zip(some, self.ranker.users(some).cpu(), strict=True))
        vectors = torch.stack([made[h] if h in made else self._vectors[h] for h in histories])
        for history in histories:
            self._vectors[history] = made.get(history, self._vectors.get(history))  # type: ignore[assignment]
            self._vectors.move_to_end(history)
        while len(self._vectors) > self.settings.cached_histories:
            self._vectors.popitem(last=False)
        return vectors


def _or_error(work: Callable[..., T], *given: Any) -> T | TenfoldError:
    """The result of `work`, or the TenfoldError that it raises, so that a wrong request does not stop the others of its batch."""
    try:
        return work(*given)
    except TenfoldError as error:
        return error
