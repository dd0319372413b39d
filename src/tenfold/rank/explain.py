"""Explanations of recommendations: by how much an item's score falls without each item of the history."""

from typing import NamedTuple

import torch

from tenfold.rank.ranker import History, Ranker

TRIED = 100  # items of the history that are left out one by one, from the newest on


class Reason(NamedTuple):
    """An item of the history, and its effect in logits: the score with it minus the score without it."""

    item: str
    effect: float


class Explained(NamedTuple):
    """A recommended item, its logit as the next item, and the items of the history by their effect, the strongest first."""

    item: str
    score: float
    reasons: list[Reason]


@torch.inference_mode()
def explain(ranker: Ranker, history: History, k: int = 10) -> list[Explained]:
    """The `k` best items of the catalogue that are not in the history, the best first, each with its reasons.

    Leave one out: the model reads the history again without each of its items, at all places where the item occurs.
    """
    seen = history.items[-(ranker.model.spec.context - 1) :]
    tried = list(dict.fromkeys(reversed(seen)))[:TRIED]
    users = ranker.users([history, *(_without(history, token) for token in tried)])
    scores = ranker.items @ users[0]
    scores[[0, *history.items]] = -torch.inf
    best = scores.topk(min(k, int(scores.isfinite().sum()))).indices
    effects = scores[best] - users[1:] @ ranker.items[best].T  # [tried, best]
    found = []
    for place, token in enumerate(best.tolist()):
        reasons = [Reason(ranker.names[t], effect) for t, effect in zip(tried, effects[:, place].tolist(), strict=True)]
        reasons.sort(key=lambda reason: -abs(reason.effect))
        found.append(Explained(ranker.names[token], float(scores[token]), reasons))
    return found


def _without(history: History, token: int) -> History:
    kept = [i for i, one in enumerate(history.items) if one != token]
    times = tuple(history.times[i] for i in kept) if history.times else ()
    return history._replace(items=tuple(history.items[i] for i in kept), times=times)
