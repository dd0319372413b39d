"""Two rankers before users: half of the users each (A/B), or one list of both (team-draft interleaving); and who is better.

The test is `learn.statistics.always_valid`: it may be read at any time, and one may stop whenever one likes.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tenfold.learn.statistics import always_valid, share_interval
from tenfold.rank.events.store import Events


def arm(user_hash: str) -> int:
    """Which of two rankers answers a user, always the same: by a part of the hash that decides nothing else."""
    return int(user_hash[-8:], 16) % 2


def interleave(a: Sequence[str], b: Sequence[str], k: int, rng: np.random.Generator) -> tuple[list[str], list[int]]:
    """A list of `k` items of both, and whose pick each is: 0 or 1 (team draft, Radlinski et al. 2008).

    In each round both pick their best item that is not taken, in an order drawn evenly.
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
    """How often each of two rankers won, and the probability of such a lead, ever, were neither better."""

    models: tuple[str, str]
    wins: tuple[int, int]
    ties: int
    p: float

    @property
    def rate(self) -> tuple[float, float, float]:
        """How often the second one wins where one does, with Wilson's 95 % interval."""
        n = sum(self.wins)
        return (self.wins[1] / n, *share_interval(self.wins[1], n)) if n else (0.5, 0.0, 1.0)


def interleaved(lists: Iterable[dict[str, Any]], taken: set[tuple[str, str]]) -> list[Verdict]:
    """Of lists of two rankers, each won by the one of whose picks more were taken; one verdict for each pair of rankers."""
    won: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for one in lists:
        if (teams := one.get("teams")) is not None:
            clicks = Counter(team for item, team in zip(one["items"], teams, strict=True) if (one["id"], item) in taken)
            won[one["model"]][int(np.sign(clicks[1] - clicks[0]))] += 1
    return [_verdict(pair.split("|"), (count[-1], count[1]), count[0]) for pair, count in won.items()]


def split(lists: Iterable[dict[str, Any]], taken: set[tuple[str, str]]) -> list[Verdict]:
    """Of users divided between two rankers, each who took anything is a win of theirs: were neither better, half would be.

    A user counts once, since what one person takes is no independent evidence.
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
    """What the lists and events of a store say of the experiments among them."""
    taken = events.actions_on_lists(actions)
    lists = [{"id": row.id, "user_hash": row.user_hash, **row.shown} for row in events.of_lists()]
    return {"interleave": interleaved(lists, taken), "ab": split(lists, taken)}
