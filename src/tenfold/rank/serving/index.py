"""Retrieval: the items whose vectors have the largest products with the vector of a user.

The exact index reads every vector. The approximate index (usearch) reads few of them, which pays beyond a million items. Where a
filter allows few items, their exact products are less work than a search whose results are mostly filtered out.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from tenfold.rank.serving.settings import IndexName
from tenfold.spec.errors import NotInstalled

EXACT_ITEMS = 1_000_000  # up to which `auto` takes the exact index
SCORES = 2**24  # computed at once: 64 MiB
FEW = 100_000  # allowed items up to which only their products are computed
EXPANSION = 256  # candidates that a search of the approximate index keeps (`expansion_search` of usearch)


class Found(NamedTuple):
    """The best items of one user: tokens and scores, the best first; fewer than asked for where not enough may be shown."""

    tokens: np.ndarray
    scores: np.ndarray


class Index(Protocol):
    """An index of item vectors; token 0 is no item and is never found."""

    def search(self, users: Tensor, k: int, left_out: Sequence[Sequence[int]], allowed: Tensor | None = None) -> list[Found]:
        """The `k` best items for each of `users` [n, dim], without the tokens in its `left_out`.

        `allowed` bool [vocab] are the tokens that may be found; None allows all.
        """
        ...

    def grow(self, items: Tensor) -> None:
        """Replace the vectors by `items` [vocab, dim]: the old ones, unchanged, and new ones after them."""
        ...


class Exact:
    """The exact index: computes the products of all items."""

    def __init__(self, items: Tensor):
        """An index of the vectors [vocab, dim]."""
        self.items = items

    def grow(self, items: Tensor) -> None:
        self.items = items

    def search(self, users: Tensor, k: int, left_out: Sequence[Sequence[int]], allowed: Tensor | None = None) -> list[Found]:
        if allowed is not None and (few := allowed.nonzero()[:, 0]).numel() <= FEW:
            return [self._among(few, user, k, out) for user, out in zip(users, left_out, strict=True)]
        at_once = max(1, SCORES // len(self.items))
        parts = [slice(first, first + at_once) for first in range(0, len(users), at_once)]
        return [found for part in parts for found in self._every(users[part], k, left_out[part], allowed)]

    def _every(self, users: Tensor, k: int, left_out: Sequence[Sequence[int]], allowed: Tensor | None) -> list[Found]:
        scores = users @ self.items.T
        if allowed is not None:
            scores.masked_fill_(~allowed, -torch.inf)
        for row, out in zip(scores, left_out, strict=True):
            row[[0, *out]] = -torch.inf
        return [_finite(*row) for row in zip(*torch.topk(scores, min(k, scores.shape[1])), strict=True)]

    def _among(self, tokens: Tensor, user: Tensor, k: int, out: Sequence[int]) -> Found:
        tokens = tokens[~torch.isin(tokens, torch.tensor([0, *out]))]
        scores, places = torch.topk(self.items[tokens] @ user, min(k, len(tokens)))
        return _finite(scores, tokens[places])


def _finite(scores: Tensor, tokens: Tensor) -> Found:
    shown = torch.isfinite(scores)
    return Found(tokens[shown].numpy(), scores[shown].numpy())


class Approximate:
    """The approximate index: usearch's graph by inner products. The scores of the items that it finds are exact."""

    def __init__(self, items: Tensor):
        """An index of the vectors [vocab, dim]. Raises NotInstalled where usearch is missing."""
        if find_spec("usearch") is None:
            raise NotInstalled("The approximate index needs usearch: pip install 'tenfold[rank]'.")
        from usearch.index import Index as Graph

        self.items, self._exact = items, Exact(items)
        self.graph: Any = Graph(ndim=items.shape[1], metric="ip", dtype="f32", expansion_search=EXPANSION)
        self.graph.add(np.arange(1, len(items)), items[1:].numpy())

    def grow(self, items: Tensor) -> None:
        known, self.items, self._exact = len(self.items), items, Exact(items)
        self.graph.add(np.arange(known, len(items)), items[known:].numpy())

    def search(self, users: Tensor, k: int, left_out: Sequence[Sequence[int]], allowed: Tensor | None = None) -> list[Found]:
        if allowed is not None:  # a search of the graph is slow and misses items where most nodes are not allowed
            return self._exact.search(users, k, left_out, allowed)
        return [self._one(user, k, out) for user, out in zip(users, left_out, strict=True)]

    def _one(self, user: Tensor, k: int, out: Sequence[int]) -> Found:
        near = self.graph.search(user.numpy(), min(k + len(out), len(self.items) - 1)).keys.astype(np.int64)
        tokens = torch.from_numpy(near[~np.isin(near, np.asarray(out, np.int64))])
        scores = self.items[tokens] @ user
        best = torch.argsort(scores, descending=True)[:k]
        return Found(tokens[best].numpy(), scores[best].numpy())


def make_index(name: IndexName, items: Tensor) -> Index:
    """The index of a name. `auto` is exact up to a million items, and beyond that approximate where usearch is installed."""
    approximate = len(items) > EXACT_ITEMS + 1 and find_spec("usearch") is not None if name == "auto" else name == "usearch"
    return Approximate(items) if approximate else Exact(items)
