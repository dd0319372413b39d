"""How well scores of the whole catalogue put the item that came next on top: hit rate and NDCG at 10, beside what needs no model.

No negatives are sampled. Items that a user has had are left out, and ties count as their mean over all orders.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from tenfold.data.interactions.interactions import Interactions, Split, last_inputs
from tenfold.data.interactions.synthetic import SYNTHETIC, ClusterChain
from tenfold.model.llama import Llama

K = 10
USERS = 256  # that are scored together
GAINS = {"hit_rate_10": np.ones(K), "ndcg_10": 1 / np.log2(np.arange(2, K + 2))}  # of the places from the first on
Scorer = Callable[[list[list[int]]], np.ndarray]  # histories in tokens -> scores [histories, vocabulary]


def quality(scores: np.ndarray, targets: np.ndarray, histories: list[list[int]]) -> dict[str, np.ndarray]:
    """Hit rate and NDCG at 10 of each user, of scores [users, vocabulary] for the tokens that came next. Token 0 is no item."""
    target = np.take_along_axis(scores, targets[:, None], 1)
    rival = np.ones(scores.shape, bool)
    for row, history, came in zip(rival, histories, targets, strict=True):
        row[[0, *history, came]] = False
    above, tied = ((rival & better).sum(1) for better in (scores > target, scores == target))
    places = [np.minimum(place, K) for place in (above, above + tied + 1)]
    reached = {name: np.concatenate(([0.0], gain.cumsum())) for name, gain in GAINS.items()}
    return {name: (r[places[1]] - r[places[0]]) / (tied + 1) for name, r in reached.items()}


def quality_of(scorer: Scorer, interactions: Interactions, split: Split) -> dict[str, np.ndarray]:
    """The quality of a scorer on the items that `split` holds out."""
    histories, targets = interactions.held_out(split)
    parts = [slice(first, first + USERS) for first in range(0, len(histories), USERS)]
    found = [quality(scorer(histories[some]), targets[some], histories[some]) for some in parts]
    return {name: np.concatenate([part[name] for part in found]) for name in GAINS}


def scorer_of(model: Llama) -> Scorer:
    """The logits of a model, which sees the newest items of a history that its context holds with the next one."""

    @torch.inference_mode()
    def scores(histories: list[list[int]]) -> np.ndarray:
        tokens, last = last_inputs(histories, min(model.spec.context - 1, 1 + max(map(len, histories))))
        hidden = model.hidden(torch.from_numpy(tokens).to(model.embedding.weight.device))
        return model.head(hidden[torch.arange(len(last)), torch.from_numpy(last)]).float().cpu().numpy()

    return scores


def popularity(interactions: Interactions) -> Scorer:
    """How often each item occurs in what may be trained on, for everybody alike."""
    counts = np.bincount([token for history in interactions.training for token in history], minlength=interactions.vocab_size)
    return lambda histories: np.tile(counts, (len(histories), 1))


def markov(interactions: Interactions) -> Scorer:
    """How often each item followed a user's last one; popularity among those that never did."""
    before, after = zip(*(pair for history in interactions.training for pair in pairwise([0, *history])), strict=True)
    follows = csr_array((np.ones(len(before)), (before, after)), shape=(interactions.vocab_size,) * 2)
    popular = popularity(interactions)
    return lambda histories: follows[[h[-1] for h in histories]].toarray() + popular(histories) / (len(before) + 1)


def best_possible(histories: list[list[int]]) -> np.ndarray:
    """The probabilities that the synthetic interactions were drawn by: no scorer has a higher expected hit rate."""
    return np.pad(ClusterChain().probabilities([[token - 1 for token in h] for h in histories]), ((0, 0), (1, 0)))


def compare(scorer: Scorer, interactions: Interactions, source: str, split: Split) -> dict[str, Any]:
    """A model beside popularity, a Markov chain and, where it is known, the best there can be; and what its hit rate is above
    popularity's among the same users, with the 95 % interval of a bootstrap over users."""
    scorers = {"model": scorer, "popularity": popularity(interactions), "markov": markov(interactions)}
    scorers |= {"best_possible": best_possible} if source == SYNTHETIC else {}
    found = {name: quality_of(each, interactions, split) for name, each in scorers.items()}
    above = found["model"]["hit_rate_10"] - found["popularity"]["hit_rate_10"]
    rng = np.random.default_rng(0)
    low, high = np.quantile([rng.choice(above, len(above)).mean() for _ in range(1000)], (0.025, 0.975))
    return {
        "split": split,
        "users": len(above),
        "items": interactions.vocab_size - 1,
        **{name: {measure: float(each.mean()) for measure, each in of.items()} for name, of in found.items()},
        "above_popularity": {"hit_rate_10": float(above.mean()), "low": float(low), "high": float(high)},
    }
