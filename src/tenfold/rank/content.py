"""Vectors of items from what is known of them, so that items that the training never saw are ranked: a tower, or semantic ids.

Both take features float32 [items, features] (`data.interactions.content`) and are zero for an item of which nothing is known.
"""

from importlib.util import find_spec
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import vq
from torch import Tensor, nn

from tenfold.spec.errors import NotInstalled

CODES = 256  # of a level
FITTED = 50_000  # items that centres are found of, drawn where there are more
ROUNDS = 20  # of Lloyd's algorithm


class Content(Protocol):
    """A module that gives items vectors; `known` is what it knows of the items of the vocabulary, and no weight."""

    known: Tensor
    n_features: int

    def read(self, features: np.ndarray) -> Tensor:
        """What is known of items with these features, as `forward` takes it."""
        ...

    def __call__(self, known: Tensor) -> Tensor:
        """Vectors [items, dim], about as long as those that the table of items begins with."""
        ...


class ContentTower(nn.Module):
    """Two layers on the features themselves."""

    known: Tensor

    def __init__(self, n_features: int, dim: int):
        super().__init__()
        self.n_features = n_features
        self.register_buffer("known", torch.empty(0, n_features), persistent=False)
        self.w1 = nn.Linear(n_features, 2 * dim, bias=False)
        self.w2 = nn.Linear(2 * dim, dim, bias=False)
        for layer in (self.w1, self.w2):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def read(self, features: np.ndarray) -> Tensor:
        return torch.from_numpy(features)

    def forward(self, known: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(known))) * self.w2.out_features**-0.5


class SemanticIds(nn.Module):
    """An item is one code of each level (TIGER, arXiv 2305.05065), and its vector the sum of its codes' own.

    `centres` float32 [levels, codes, features] are those of `residual_centres`; items with like features share codes.
    """

    known: Tensor
    centres: Tensor

    def __init__(self, centres: Tensor, dim: int):
        super().__init__()
        levels, codes, self.n_features = centres.shape
        self.register_buffer("centres", centres)
        self.register_buffer("known", torch.empty(0, levels, dtype=torch.int64), persistent=False)
        self.codes = nn.EmbeddingBag(1 + levels * codes, dim, mode="sum", padding_idx=0)
        nn.init.normal_(self.codes.weight, std=(dim * levels) ** -0.5)
        with torch.no_grad():
            self.codes.weight[0] = 0

    def read(self, features: np.ndarray) -> Tensor:
        """Rows of `codes`, int64 [items, levels]; 0 where nothing is known."""
        levels, codes, _ = self.centres.shape
        rows = codes_of(features, self.centres.cpu().numpy()) + codes * np.arange(levels) + 1
        return torch.from_numpy(np.where(features.any(1, keepdims=True), rows, 0))

    def forward(self, known: Tensor) -> Tensor:
        return self.codes(known)


def residual_centres(features: np.ndarray, levels: int, seed: int, codes: int = CODES) -> np.ndarray:
    """Centres float32 [levels, codes, features] by residual k-means: of the features, then of what each level leaves of them.

    Where fewer items differ than there are codes, the last codes are copies of the first, and no item has them. Raises NotInstalled
    where scikit-learn is missing.
    """
    if find_spec("sklearn") is None:
        raise NotInstalled("Semantic ids are found with scikit-learn: pip install 'tenfold[rank]'.")
    from sklearn.cluster import KMeans

    left = np.unique(features[features.any(1)], axis=0).astype(np.float64)
    if len(left) > FITTED:
        left = left[np.random.default_rng(seed).choice(len(left), FITTED, replace=False)]
    found = np.zeros((levels, codes, features.shape[1]), np.float32)
    for level in found if len(left) else ():
        k = min(codes, len(np.unique(left, axis=0)))
        centres = KMeans(k, n_init=1, max_iter=ROUNDS, random_state=seed).fit(left).cluster_centers_
        level[:] = centres[0]
        level[:k] = centres
        left = left - level[vq(left, level.astype(np.float64))[0]]
    return found


def codes_of(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest centre of each level for features [items, features], int64 [items, levels]."""
    left, found = features.astype(np.float64), np.empty((len(features), len(centres)), np.int64)
    for level, centre in enumerate(centres.astype(np.float64)):
        found[:, level] = vq(left, centre)[0] if len(left) else 0
        left = left - centre[found[:, level]]
    return found
