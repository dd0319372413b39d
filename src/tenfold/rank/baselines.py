"""Baselines that every ranker is compared with: popularity (of all time and of 30 days), a Markov chain, ItemKNN and EASE.

All are computed from the training events. Those with a setting take the best of three values on the validation events.
"""

import numpy as np
from scipy.sparse import csr_array, diags_array

from tenfold.data.interactions.events import Interactions, Queries
from tenfold.rank.metrics import evaluate, summary
from tenfold.rank.ranker import Scorer

DAYS_S = 30 * 86400
REACHES = (1, 5, 20)  # items that the Markov chain looks back
FADE = 0.8  # weight of the next older item in the Markov chain
NEVER = 1e-6  # weight of popularity in the Markov chain: it only orders items that never followed
NEIGHBOURS = (20, 100, 500)  # of an item in ItemKNN
SHRINK = 10.0  # added to the product of two items' norms, so that items of few users are no close neighbours
PENALTIES = (100.0, 300.0, 1000.0)  # L2 penalties of EASE
TRIED = 2000  # validation users on which a setting is chosen
LARGEST = 20_000  # items in the catalogue up to which all pairs are computed


def baselines(interactions: Interactions) -> dict[str, Scorer]:
    """The scorers by name. ItemKNN and EASE, which need all pairs of items, are left out beyond `LARGEST` items."""
    found = {
        "popularity": popularity(interactions),
        "popularity_30_days": popularity(interactions, DAYS_S),
        "markov": _best(interactions, [markov(interactions, reach) for reach in REACHES]),
    }
    if interactions.vocab_size <= LARGEST:
        found["itemknn"] = _best(interactions, [item_knn(interactions, k) for k in NEIGHBOURS])
        found["ease"] = _best(interactions, [ease(interactions, penalty) for penalty in PENALTIES])
    return found


def popularity(interactions: Interactions, window_s: float = np.inf) -> Scorer:
    """Scores are the number of training events of each item, in the last `window_s` seconds; equal for all users."""
    events = interactions.training
    recent = events[interactions.times[events] > interactions.times[events].max() - window_s]
    counts = np.bincount(interactions.items[recent], minlength=interactions.vocab_size).astype(np.float64)
    return lambda queries: np.tile(counts, (len(queries.targets), 1))


def markov(interactions: Interactions, reach: int = 1) -> Scorer:
    """A Markov chain of several steps: how often each item followed each of the user's last `reach` items within `reach` events.

    The counts are shares of all that followed an item; they, and the user's items, are weighted by `FADE` for each step of
    distance. Items that never followed are ordered by popularity.
    """
    events, size = interactions.training, interactions.vocab_size
    user = interactions.user_of[events]
    first = np.flatnonzero(np.diff(user, prepend=-1))
    items, user = (np.insert(of, first, start) for of, start in ((interactions.items[events], 0), (user, user[first])))
    counts = csr_array((size, size), dtype=np.float64)
    for lag in range(1, min(reach, len(items) - 1) + 1):
        same = user[lag:] == user[:-lag]
        pairs = items[:-lag][same], items[lag:][same]
        counts = counts + csr_array((np.full(same.sum(), FADE ** (lag - 1)), pairs), shape=(size, size))
    follows = diags_array(1 / np.maximum(1e-12, counts.sum(1))) @ counts
    popular = interactions.counts / (interactions.counts.sum() + 1)

    def scores(queries: Queries) -> np.ndarray:
        last = [[0, *history][::-1][:reach] for history in queries.histories]
        rows = np.repeat(np.arange(len(last)), [len(items) for items in last])
        weights = np.concatenate([FADE ** np.arange(len(items)) for items in last])
        had = csr_array((weights, (rows, np.concatenate(last))), shape=(len(last), size))
        return (had @ follows).toarray() + NEVER * popular

    return scores


def item_knn(interactions: Interactions, neighbours: int) -> Scorer:
    """ItemKNN (Sarwar et al. 2001): the sum of the item's shrunk cosines to the user's items among whose neighbours it is."""
    gram = _gram(interactions)
    length = np.sqrt(np.diag(gram))
    near = gram / (length[:, None] * length + SHRINK)
    np.fill_diagonal(near, 0)
    if neighbours < len(near):
        least = np.partition(near, -neighbours, axis=1)[:, -neighbours]
        near[near < least[:, None]] = 0
    return _product(near)


def ease(interactions: Interactions, penalty: float) -> Scorer:
    """EASE (Steck, arXiv 1905.03375), ridge regression of items on the others: B = I - P / diag(P), P = (X'X + penalty I)^-1."""
    inverse = np.linalg.inv(_gram(interactions) + penalty * np.eye(interactions.vocab_size))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return _product(weights)


def _gram(interactions: Interactions) -> np.ndarray:
    """How many users took both of two items, float64 [vocab, vocab]."""
    events = interactions.training
    shape = (len(interactions.offsets) - 1, interactions.vocab_size)
    had = csr_array((np.ones(len(events)), (interactions.user_of[events], interactions.items[events])), shape=shape)
    had.sum_duplicates()
    had.data[:] = 1
    return (had.T @ had).toarray()


def _product(weights: np.ndarray) -> Scorer:
    """Scores that are the sums of the rows of `weights` [vocab, vocab] of a user's items, each counted once."""

    def scores(queries: Queries) -> np.ndarray:
        rows = np.repeat(np.arange(len(queries.histories)), [len(h) for h in queries.histories])
        columns = np.concatenate([*queries.histories, np.empty(0, np.int64)])
        had = csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(queries.histories), len(weights)))
        had.sum_duplicates()
        had.data[:] = 1
        return had @ weights

    return scores


def _best(interactions: Interactions, scorers: list[Scorer]) -> Scorer:
    """The scorer with the highest NDCG at 10 on the validation."""
    queries = interactions.held_out("validation", TRIED)

    def quality(scorer: Scorer) -> float:
        return summary(evaluate(scorer, interactions, queries, logits=False))["ndcg_10"]

    return max(scorers, key=quality)
