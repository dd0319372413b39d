"""How well scores of the whole catalogue put the item that came next on top.

No negatives are sampled. Items that a user has had are left out, and ties count as their mean over all orders. What is asked of one
user is averaged first, so that every user counts alike, and intervals are those of a bootstrap over users.
"""

from dataclasses import dataclass

import numpy as np

from tenfold.data.interactions.events import Interactions, Queries
from tenfold.rank.objectives import calibration_error
from tenfold.rank.ranker import Scorer

K = 10
TOGETHER = 128  # queries that are scored at once
RESAMPLES = 1000
GAINS = {"hit_rate_10": np.ones(K), "ndcg_10": 1 / np.log2(np.arange(2, K + 2))}  # of the places from the first on
MEASURES = (*GAINS, "mrr")


@dataclass(frozen=True)
class Evaluation:
    """`by_user` has each measure of each user, float64 [users]; `whole` what is known of all lists together."""

    users: np.ndarray
    by_user: dict[str, np.ndarray]
    whole: dict[str, float]
    queries: int


def quality(scores: np.ndarray, targets: np.ndarray, histories: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Hit rate and NDCG at 10 and the reciprocal rank of each query, of scores [queries, vocabulary] for the tokens that came next.

    Token 0 is no item, and a target past the vocabulary is missed.
    """
    known = targets < scores.shape[1]
    came = np.where(known, targets, 0)
    target = np.take_along_axis(scores, came[:, None], 1)
    rival = np.ones(scores.shape, bool)
    for row, history, item in zip(rival, histories, came, strict=True):
        row[[0, *history, item]] = False
    above, tied = ((rival & of).sum(1) for of in (~(scores <= target), scores == target))  # a score that is NaN lies above
    places = above, above + tied + 1
    reached = {name: np.concatenate(([0.0], np.append(gain, np.zeros(scores.shape[1])).cumsum())) for name, gain in GAINS.items()}
    reached["mrr"] = np.concatenate(([0.0], (1 / np.arange(1, scores.shape[1] + K + 1)).cumsum()))
    return {name: known * (r[places[1]] - r[places[0]]) / (tied + 1) for name, r in reached.items()}


def evaluate(scorer: Scorer, interactions: Interactions, queries: Queries, *, logits: bool = True) -> Evaluation:
    """The quality of a scorer on what was asked. With `logits` the scores are those of probabilities, whose calibration error is
    that of the ten likeliest items."""
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
    """The means over users, and what is known of all lists."""
    return {name: float(values.mean()) for name, values in found.by_user.items()} | found.whole


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean over users, by a bootstrap over them."""
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def difference(one: Evaluation, other: Evaluation, measure: str) -> dict[str, float]:
    """How far `one` lies above `other` on the same users, with the 95 % interval."""
    d = one.by_user[measure] - other.by_user[measure]
    low, high = interval(d)
    return {"mean": float(d.mean()), "low": low, "high": high}


def pooled(parts: list[Evaluation]) -> Evaluation:
    """Several evaluations as one. A user of several counts once, by the mean of what each found."""
    users, place, count = np.unique(np.concatenate([p.users for p in parts]), return_inverse=True, return_counts=True)
    by_user = {name: np.bincount(place, np.concatenate([p.by_user[name] for p in parts])) / count for name in MEASURES}
    whole = {name: float(np.mean([p.whole[name] for p in parts])) for name in parts[0].whole}
    return Evaluation(users, by_user, whole, sum(p.queries for p in parts))


def _part(queries: Queries, some: slice) -> Queries:
    q = queries
    return Queries(q.user[some], q.histories[some], q.times[some], q.targets[some], q.now[some])


def _best(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The ten best items of each row, ties in random order."""
    k = min(K, scores.shape[1] - 1)
    mixed = rng.permutation(scores.shape[1])
    best = np.argpartition(-scores[:, mixed], k - 1, axis=1)[:, :k]
    return mixed[best]


def _of_lists(shown: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Of how often each token was recommended: the share of the catalogue that ever was, the Gini coefficient of the items' shares
    (0 where all are shown alike), and the mean surprise in bits of a shown item (its popularity among the training's events)."""
    shown, counts = shown[1:], counts[1:]
    order = np.sort(shown)
    n, total = len(order), max(1.0, order.sum())
    gini = float((2 * np.arange(1, n + 1) - n - 1) @ order / (n * total))
    bits = -np.log2((counts + 1) / (counts + 1).sum())
    return {"coverage": float((shown > 0).mean()), "gini": gini, "novelty_bits": float(shown @ bits / total)}
