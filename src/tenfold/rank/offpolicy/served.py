"""The lists of an event store as a log, and the policy of another ranker for the same requests."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tenfold.rank.events.store import Events
from tenfold.rank.offpolicy.log import Log, Policy
from tenfold.rank.offpolicy.rewards import Choice
from tenfold.rank.serving.places import Places, retraced
from tenfold.rank.serving.protocol import LONGEST, as_asked
from tenfold.rank.serving.recommender import Query, Recommender
from tenfold.spec.errors import TenfoldError

TOGETHER = 64  # lists that are ranked again at once


class Row(NamedTuple):
    """A place of a shown list, and the other ranker's pool of items, with chances and scores, at that place."""

    item: str
    place: int
    reward: float
    propensity: float
    user: str
    pool: np.ndarray  # tokens
    chances: np.ndarray
    scores: np.ndarray
    score: float


def served_log(
    events: Events, recommender: Recommender, most: int, actions: Sequence[str] = ()
) -> tuple[Log, Policy, Counter[str]]:
    """The newest `most` lists as a log, the policy of `recommender` for them, and how many lists were left out, by reason.

    The reward of a place is 1 where its item was taken from this list, by one of the actions, else 0. Raises TenfoldError where no
    list is left.
    """
    left_out: Counter[str] = Counter()
    rows = list(_rows(events, recommender, most, actions, left_out))
    if not rows:
        raise TenfoldError(
            "The store has no list of a named user with propensities: serve a ranker without --experiment interleave first, and "
            "name the user in each request."
        )
    names = recommender.ranker.names
    number = {name: i for i, name in enumerate(dict.fromkeys([*names, *(row.item for row in rows)]))}
    size = max(len(row.pool) for row in rows)
    pools = [np.pad(part, (0, size - len(part))) for row in rows for part in (row.pool, row.chances, row.scores)]
    items, chances, scores = (np.array(pools[i::3]) for i in range(3))
    places = np.array([row.place for row in rows])
    log = Log(
        list(number), np.array([number[row.item] for row in rows]), places, np.array([row.reward for row in rows]),
        np.array([row.propensity for row in rows]), np.array([row.user for row in rows]),
    )  # fmt: skip
    choice = Choice(items, np.broadcast_to(places[:, None], items.shape), scores)
    return log, Policy(choice, chances, np.array([row.score for row in rows])), left_out


def _rows(events: Events, recommender: Recommender, most: int, actions: Sequence[str], left_out: Counter[str]) -> Iterator[Row]:
    taken, nobody = events.actions_on_lists(actions), events.nobody
    newest = events.newest_lists(most)
    for lists in (newest[first : first + TOGETHER] for first in range(0, len(newest), TOGETHER)):
        named = [one for one in lists if one.user_hash != nobody]
        usable = [one for one in named if one.shown["propensities"] is not None]
        left_out["of users who were not named"] += len(lists) - len(named)
        left_out["of two rankers, without propensities"] += len(named) - len(usable)
        queries = [_query(events, recommender, one) for one in usable]
        for one, places in zip(usable, recommender.places(queries), strict=True):
            if isinstance(places, TenfoldError):
                left_out[str(places)] += 1
            else:
                yield from _places(one, places, recommender, taken)


def _query(events: Events, recommender: Recommender, one: Any) -> Query:
    """The request for a stored list, in the other ranker's tokens."""
    shown, ranker = one.shown, recommender.ranker
    if shown["history"] is None:
        known = events.history_of(one.user_hash, LONGEST, recommender.settings.history_actions, before=one.created)
        names, times = [item.item for item in known], [item.time for item in known]
    else:
        names, times = shown["history"], shown["times"] or []
    return as_asked(shown).query(ranker, ranker.history(names, times, shown.get("now", one.created)))


def _places(one: Any, places: Places, recommender: Recommender, taken: set[tuple[str, str]]) -> Iterator[Row]:
    shown, scores, pool = one.shown["items"], places.scores, places.pool.tokens
    tokens = recommender.ranker.tokens(shown)
    number = {token: i for i, token in enumerate(pool.tolist())}
    lowest = float(scores.min()) if len(scores) else 0.0
    for place, chances in enumerate(retraced(places, tokens)):
        score = float(scores[number[tokens[place]]]) if tokens[place] in number else lowest
        item = shown[place]
        earned, propensity = float((one.id, item) in taken), one.shown["propensities"][place]
        yield Row(item, place, earned, propensity, one.user_hash, pool, chances, scores, score)
