"""Why a ranker recommends an item to a user: what the item's score would lose without each item of the history."""

from typing import NamedTuple

import torch

from tenfold.rank.ranker import History, Ranker

TRIED = 100  # items of a history, the newest


class Reason(NamedTuple):
    """An item of the history, and by how many logits the score is higher with it than without it; below zero it speaks against."""

    item: str
    effect: float


class Explained(NamedTuple):
    """A recommended item, its logit of being the next, and the items of the history by what they do to it, the strongest first."""

    item: str
    score: float
    reasons: list[Reason]


@torch.inference_mode()
def explain(ranker: Ranker, history: History, k: int = 10) -> list[Explained]:
    """The `k` best items of the whole catalogue that the history lacks, the best first, each explained by the history.

    The model reads the history again without each of its items, wherever that stands (leave one out).
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
