"""Ranking metrics over the whole catalogue: hit rate, NDCG and MRR of the item that came next, coverage, novelty and others.

No negatives are sampled. Items of the history are left out, and ties count as the mean over all their orders. The queries of a user
are averaged first, so that all users count alike, and intervals are from a bootstrap over users.
"""

from dataclasses import dataclass

import numpy as np

from tenfold.data.interactions.events import Interactions, Queries
from tenfold.rank.objectives import calibration_error
from tenfold.rank.ranker import Scorer

K = 10  # places of a list
TOGETHER = 128  # queries that are scored at once
RESAMPLES = 1000  # of the bootstrap
GAINS = {"hit_rate_10": np.ones(K), "ndcg_10": 1 / np.log2(np.arange(2, K + 2))}  # of places 1 to K
MEASURES = (*GAINS, "mrr")


@dataclass(frozen=True)
class Evaluation:
    """`by_user` has the measures of each user, float64 [users]; `whole` those of all lists together; `queries` is their number."""

    users: np.ndarray
    by_user: dict[str, np.ndarray]
    whole: dict[str, float]
    queries: int


def quality(scores: np.ndarray, targets: np.ndarray, histories: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Hit rate and NDCG at 10 and the reciprocal rank of each query, float64 [queries].

    scores [queries, vocabulary]; targets int64 [queries], the tokens that came next; histories, the tokens that are not ranked.
    Token 0 is no item, and a target beyond the vocabulary counts as missed.
    """
    known = targets < scores.shape[1]
    came = np.where(known, targets, 0)
    target = np.take_along_axis(scores, came[:, None], 1)
    rival = np.ones(scores.shape, bool)
    for row, history, item in zip(rival, histories, came, strict=True):
        row[[0, *history, item]] = False
    # `~(<=)` rather than `>`: a score that is NaN counts as above, so that it is not rewarded.
    above, tied = ((rival & of).sum(1) for of in (~(scores <= target), scores == target))
    places = above, above + tied + 1
    reached = {name: np.concatenate(([0.0], np.append(gain, np.zeros(scores.shape[1])).cumsum())) for name, gain in GAINS.items()}
    reached["mrr"] = np.concatenate(([0.0], (1 / np.arange(1, scores.shape[1] + K + 1)).cumsum()))
    return {name: known * (r[places[1]] - r[places[0]]) / (tied + 1) for name, r in reached.items()}


def evaluate(scorer: Scorer, interactions: Interactions, queries: Queries, *, logits: bool = True) -> Evaluation:
    """Evaluate a scorer on queries.

    With `logits` the scores are logits of a softmax over the items that are ranked, and the calibration error of the ten likeliest
    items' probabilities is measured, too.
    """
    parts, lists, said = [], np.zeros(interactions.vocab_size), []
    rng = np.random.default_rng(0)
    for first in range(0, len(queries.targets), TOGETHER):
        some = _part(queries, slice(first, first + TOGETHER))
        scores = scorer(some)
        parts.append(quality(scores, some.targets, some.histories))
        for row, history in zip(scores, some.histories, strict=True):
            row[[0, *history]] = -np.inf
        best = _best(scores, rng)
        np.add.at(lists, best.ravel(), 1)
        if logits:
            p = np.exp(scores - scores.max(1, keepdims=True))
            p = np.take_along_axis(p / p.sum(1, keepdims=True), best, 1)
            said.append(np.stack((p.ravel(), (best == some.targets[:, None]).ravel())))
    found = {name: np.concatenate([part[name] for part in parts]) for name in MEASURES}
    users, place, count = np.unique(queries.user, return_inverse=True, return_counts=True)
    by_user = {name: np.bincount(place, values) / count for name, values in found.items()}
    error = {"calibration_error": calibration_error(*np.concatenate(said, 1))} if said else {}
    return Evaluation(users, by_user, _of_lists(lists, interactions.counts) | error, len(queries.targets))


def summary(found: Evaluation) -> dict[str, float]:
    """The means over users of each measure, and the measures of all lists together."""
    return {name: float(values.mean()) for name, values in found.by_user.items()} | found.whole


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of `values` [users], by a bootstrap over users."""
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def difference(one: Evaluation, other: Evaluation, measure: str) -> dict[str, float]:
    """The mean of `one` - `other` over the same users, with the ends `low` and `high` of its 95 % interval."""
    d = one.by_user[measure] - other.by_user[measure]
    low, high = interval(d)
    return {"mean": float(d.mean()), "low": low, "high": high}


def pooled(parts: list[Evaluation]) -> Evaluation:
    """Several evaluations as one. A user in several of them counts once, with the mean of their values."""
    users, place, count = np.unique(np.concatenate([p.users for p in parts]), return_inverse=True, return_counts=True)
    by_user = {name: np.bincount(place, np.concatenate([p.by_user[name] for p in parts])) / count for name in MEASURES}
    whole = {name: float(np.mean([p.whole[name] for p in parts])) for name in parts[0].whole}
    return Evaluation(users, by_user, whole, sum(p.queries for p in parts))


def _part(queries: Queries, some: slice) -> Queries:
    q = queries
    return Queries(q.user[some], q.histories[some], q.times[some], q.targets[some], q.now[some])


def _best(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The ten best items of each row, in no order; ties at the end are broken at random."""
    k = min(K, scores.shape[1] - 1)
    mixed = rng.permutation(scores.shape[1])
    best = np.argpartition(-scores[:, mixed], k - 1, axis=1)[:, :k]
    return mixed[best]


def _of_lists(shown: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Measures of all lists, from how often each token was `shown`, and its `counts` in the training events.

    `coverage` is the share of the catalogue that was shown at all, `gini` the Gini coefficient of how often items were shown (0:
    all equally often), `novelty_bits` the mean of -log2(popularity) of a shown item.
    """
    shown, counts = shown[1:], counts[1:]
    order = np.sort(shown)
    n, total = len(order), max(1.0, order.sum())
    gini = float((2 * np.arange(1, n + 1) - n - 1) @ order / (n * total))
    bits = -np.log2((counts + 1) / (counts + 1).sum())
    return {"coverage": float((shown > 0).mean()), "gini": gini, "novelty_bits": float(shown @ bits / total)}
