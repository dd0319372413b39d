"""How well scores of the whole catalogue put the item that came next on top: hit rate and NDCG at 10, beside what needs no model.

No negatives are sampled. Items that a user has had are left out, and ties count as their mean over all orders.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from tenfold.data.interactions.interactions import Interactions, Split
from tenfold.data.interactions.synthetic import SYNTHETIC, ClusterChain

K = 10
USERS = 256  # that are scored together
Scorer = Callable[[list[list[int]]], np.ndarray]  # histories in tokens -> scores [histories, vocabulary]


@dataclass(frozen=True)
class Quality:
    """Hit rate and NDCG at 10 of each user."""

    hit: np.ndarray
    ndcg: np.ndarray

    def means(self) -> dict[str, float]:
        return {"hit_rate_10": float(self.hit.mean()), "ndcg_10": float(self.ndcg.mean())}


def quality(scores: np.ndarray, targets: np.ndarray, histories: list[list[int]]) -> Quality:
    """Of scores [users, vocabulary] for the tokens that came next. Token 0 is no item."""
    target = np.take_along_axis(scores, targets[:, None], 1)
    out = np.zeros(scores.shape, bool)
    out[:, 0] = True
    for row, history in zip(out, histories, strict=True):
        row[history] = True
    np.put_along_axis(out, targets[:, None], True, 1)  # it is not its own rival
    above, tied = ((~out & better).sum(1) for better in (scores > target, scores == target))
    return Quality(_mean_gain(above, tied, np.ones(K)), _mean_gain(above, tied, 1 / np.log2(np.arange(2, K + 2))))


def _mean_gain(above: np.ndarray, tied: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """The mean gain over the places that an item may take with `above` items before it and `tied` beside it."""
    reached = np.concatenate(([0.0], gain.cumsum()))
    first, end = (np.minimum(place, len(gain)) for place in (above, above + tied + 1))
    return (reached[end] - reached[first]) / (tied + 1)


def quality_of(scorer: Scorer, interactions: Interactions, split: Split) -> Quality:
    """Of a scorer on the items that `split` holds out."""
    histories, targets = interactions.held_out(split)
    parts = []
    for first in range(0, len(histories), USERS):
        some = slice(first, first + USERS)
        parts.append(quality(scorer(histories[some]), targets[some], histories[some]))
    return Quality(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("hit", "ndcg")))


def popularity(interactions: Interactions) -> Scorer:
    """How often each item occurs in what may be trained on, for everybody alike."""
    counts = interactions.counts().astype(float)
    return lambda histories: np.broadcast_to(counts, (len(histories), len(counts)))


def markov(interactions: Interactions) -> Scorer:
    """How often each item followed a user's last one; popularity among those that never did."""
    pairs = np.array([pair for h in interactions.training for pair in zip(h, h[1:], strict=False)], np.int64).reshape(-1, 2)
    shape = (interactions.vocab_size,) * 2
    follows = csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=shape)
    counts = interactions.counts()
    return lambda histories: follows[[h[-1] for h in histories]].toarray() + counts / (counts.sum() + 1)


def best_possible(histories: list[list[int]]) -> np.ndarray:
    """The true probabilities of the synthetic interactions: no scorer has a higher expected hit rate."""
    items = [[token - 1 for token in history] for history in histories]
    return np.pad(ClusterChain().probabilities(items), ((0, 0), (1, 0)))


def compare(scorer: Scorer, interactions: Interactions, source: str, split: Split) -> dict[str, Any]:
    """A model beside popularity, a Markov chain and, where it is known, the best there can be; and the difference of its hit
    rate to popularity's over the same users, with its 95 % interval by a bootstrap over users."""
    rivals = {"popularity": popularity(interactions), "markov": markov(interactions)}
    rivals |= {"best_possible": best_possible} if source == SYNTHETIC else {}
    found = {name: quality_of(each, interactions, split) for name, each in {"model": scorer, **rivals}.items()}
    difference = found["model"].hit - found["popularity"].hit
    rng = np.random.default_rng(0)
    means = [difference[rng.integers(len(difference), size=len(difference))].mean() for _ in range(1000)]
    low, high = np.quantile(means, (0.025, 0.975))
    return {
        "split": split,
        "users": len(difference),
        "items": interactions.vocab_size - 1,
        **{name: each.means() for name, each in found.items()},
        "above_popularity": {"hit_rate_10": float(difference.mean()), "low": float(low), "high": float(high)},
    }
