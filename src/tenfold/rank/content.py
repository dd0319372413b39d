"""Vectors of items from their content, so that items that are not in the training data can be ranked: a tower, or semantic ids.

Both take features float32 [items, features] (`data.interactions.content`), and give a zero vector to an item without content.
"""

from importlib.util import find_spec
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import vq
from torch import Tensor, nn

from tenfold.spec.errors import NotInstalled

CODES = 256  # on each level
FITTED = 50_000  # items that k-means is fitted on, at most; of more a random sample is taken
ROUNDS = 20  # iterations of Lloyd's algorithm


class Content(Protocol):
    """A module that computes vectors of items; the buffer `known` has the content of the items of the vocabulary."""

    known: Tensor
    n_features: int

    def read(self, features: np.ndarray) -> Tensor:
        """Features [items, features] in the form that `forward` takes."""
        ...

    def __call__(self, known: Tensor) -> Tensor:
        """Vectors [items, dim], with about the norm of the initial vectors in the table of items."""
        ...


class ContentTower(nn.Module):
    """A tower of two linear layers on the features, with SiLU between."""

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
    """An item is one code on each level (TIGER, arXiv 2305.05065); its vector is the sum of the learned vectors of its codes.

    `centres` float32 [levels, codes, features] are those of `residual_centres`; items with similar features share codes.
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
        """Row numbers of the table `codes`, int64 [items, levels]; 0 for items without content."""
        levels, codes, _ = self.centres.shape
        rows = codes_of(features, self.centres.cpu().numpy()) + codes * np.arange(levels) + 1
        return torch.from_numpy(np.where(features.any(1, keepdims=True), rows, 0))

    def forward(self, known: Tensor) -> Tensor:
        return self.codes(known)


def residual_centres(features: np.ndarray, levels: int, seed: int, codes: int = CODES) -> np.ndarray:
    """Centres float32 [levels, codes, features] by residual k-means: of the features, then of the residuals of each level.

    Where there are fewer different items than codes, the unused codes are copies of the first one. Raises NotInstalled where
    scikit-learn is missing.
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
    """The code of each level for features [items, features]: int64 [items, levels], the nearest centre to the residual."""
    left, found = features.astype(np.float64), np.empty((len(features), len(centres)), np.int64)
    for level, centre in enumerate(centres.astype(np.float64)):
        found[:, level] = vq(left, centre)[0] if len(left) else 0
        left = left - centre[found[:, level]]
    return found
