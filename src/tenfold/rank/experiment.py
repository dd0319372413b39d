"""Experiments with two rankers: A/B (each answers half of the users), or interleaving (team-draft lists of both); and their result.

The test is `learn.statistics.always_valid`: it may be read, and the experiment stopped, at any time.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tenfold.learn.statistics import always_valid, share_interval
from tenfold.rank.events.store import Events


def arm(user_hash: str) -> int:
    """Which of two rankers, 0 or 1, always answers a user: by the last digits of the hash, which nothing else depends on."""
    return int(user_hash[-8:], 16) % 2


def interleave(a: Sequence[str], b: Sequence[str], k: int, rng: np.random.Generator) -> tuple[list[str], list[int]]:
    """A list of `k` items from two rankings, and which of them, 0 or 1, picked each item (team draft, Radlinski et al. 2008).

    In each round both rankings pick their best item that is not in the list yet, in random order.
    """
    rankings, shown, teams = (a, b), dict[str, int](), list[int]()
    while len(shown) < k:
        before = len(shown)
        for team in rng.permutation(2).tolist():
            pick = next((item for item in rankings[team] if item not in shown), None)
            if pick is not None and len(shown) < k:
                shown[pick] = team
                teams.append(team)
        if len(shown) == before:
            break
    return list(shown), teams


@dataclass(frozen=True)
class Verdict:
    """How often each of two rankers won, and the p-value of "neither is better", which is valid at any time."""

    models: tuple[str, str]
    wins: tuple[int, int]
    ties: int
    p: float

    @property
    def rate(self) -> tuple[float, float, float]:
        """The share of wins of the second ranker among all wins, and the ends of Wilson's 95 % interval."""
        n = sum(self.wins)
        return (self.wins[1] / n, *share_interval(self.wins[1], n)) if n else (0.5, 0.0, 1.0)


def interleaved(lists: Iterable[dict[str, Any]], taken: set[tuple[str, str]]) -> list[Verdict]:
    """The verdict for each pair of rankers: a user is won by the ranker of whose picks they took more, in all interleaved lists.

    A user counts once, since the lists of one person are not independent. `taken` has (list id, item). Lists of one ranker are
    ignored.
    """
    ahead: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by pair and user: picks taken of the second, less of the first
    for one in lists:
        if (teams := one.get("teams")) is not None:
            won = [2 * team - 1 for item, team in zip(one["items"], teams, strict=True) if (one["id"], item) in taken]
            ahead[one["model"]][one["user_hash"]] += sum(won)
    found = []
    for pair, users in ahead.items():
        count = Counter(np.sign(list(users.values())).tolist())
        found.append(_verdict(pair.split("|"), (count[-1], count[1]), count[0]))
    return found


def split(lists: Iterable[dict[str, Any]], taken: set[tuple[str, str]]) -> list[Verdict]:
    """The verdict for each pair of rankers of an A/B experiment: a user who took anything is a win of the ranker that they got.

    If neither is better, each ranker has half of the wins. A user counts once, since the lists of one person are not independent.
    `taken` has (list id, item).
    """
    users: defaultdict[tuple[str, ...], dict[str, bool]] = defaultdict(dict)
    for one in lists:
        if (pair := one.get("arms")) is not None:
            took, who = users[tuple(pair)], one["user_hash"]
            took[who] = took.get(who, False) or any((one["id"], item) in taken for item in one["items"])
    found = []
    for models, took_any in users.items():
        first, second = (sum(took and arm(user) == team for user, took in took_any.items()) for team in (0, 1))
        found.append(_verdict(models, (first, second), len(took_any) - first - second))
    return found


def _verdict(models: Sequence[str], wins: tuple[int, int], ties: int) -> Verdict:
    first, second = models
    return Verdict((first, second), wins, ties, always_valid(wins[1], wins[0]))


def verdicts(events: Events, actions: Sequence[str] = ()) -> dict[str, list[Verdict]]:
    """The verdicts on all experiments in an event store, without lists of users who were not named.

    `actions` are those that count as taking an item, by default all.
    """
    taken, nobody = events.actions_on_lists(actions), events.nobody
    named = (row for row in events.of_lists() if row.user_hash != nobody)
    lists = [{"id": row.id, "user_hash": row.user_hash, **row.shown} for row in named]
    return {"interleave": interleaved(lists, taken), "ab": split(lists, taken)}
