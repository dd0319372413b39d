"""A candidate beside the release: what the thumbs of the users who got the one and of those who got the other say, at any time.

A user, or where nobody is named a conversation, counts once, by the first thumb: the thumbs of one person are not independent.
Users of the two models whose thumbs are neighbours in time make pairs, so that a better hour of the day favours neither, and
pairs whose thumbs differ are wins and losses of the candidate.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tenfold.learn.data import open_feedback
from tenfold.learn.release import released
from tenfold.learn.statistics import always_valid, always_valid_interval, share_interval
from tenfold.serve.api.keys import ANYBODY
from tenfold.serve.api.split import unit
from tenfold.serve.feedback.feedback import Feedback, ratings, responses
from tenfold.spec.errors import TenfoldError

ERROR = 0.05  # the probability that two models that are as good are ever told apart
Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Arm:
    """How many users judged a model, and the share of them whose first thumb was up, with Wilson's interval (95 %)."""

    users: int
    liked: float
    liked_interval: tuple[float, float]

    @classmethod
    def of(cls, thumbs: list[bool]) -> "Arm":
        n = len(thumbs)
        return cls(n, sum(thumbs) / n, share_interval(sum(thumbs), n)) if n else cls(0, 0.0, (0.0, 1.0))


@dataclass(frozen=True)
class Trial:
    """`p` and the interval of the share of wins (95 %) hold however often they are looked at."""

    candidate: Arm
    released: Arm
    wins: int
    losses: int
    p: float
    wins_interval: tuple[float, float]

    @property
    def verdict(self) -> Verdict:
        if self.p > ERROR:
            return "undecided"
        return "better" if self.wins > self.losses else "worse"


def trial(home: Path, database: str) -> dict[str, Any]:
    """What people say of the candidate of `home`: a `Trial` with its verdict, and both paths.

    Raises TenfoldError where no candidate is tried, or there is no feedback.
    """
    now = released(home)
    if now is None or "candidate" not in now:
        raise TenfoldError(f"No candidate of {home} is tried: begin with `tenfold learn release NEW --share 0.1`.")
    candidate = now["candidate"]
    found = judged(thumbs(open_feedback(database), {candidate["sha256"]: True, now["sha256"]: False}, candidate["since"]))
    names = {"candidate_path": candidate["path"], "released_path": now["path"], "share": candidate["share"]}
    return {**names, **asdict(found), "verdict": found.verdict}


def thumbs(feedback: Feedback, arms: dict[str, bool], since: float) -> Iterator[tuple[bool, bool]]:
    """The first thumb of each unit in order of time: whether its answer was of the candidate, and whether the thumb was up.

    `arms` says by the hash of the weights which is the candidate; answers before `since` and of other models do not count.
    """
    nobody, seen = feedback.user_hash(ANYBODY.name), set()
    answers = {row.id: row for row in feedback.rows(responses) if row.created >= since and row.checkpoint in arms}
    for rating in feedback.rows(ratings):
        if (answer := answers.get(rating.response_id)) is None:
            continue
        first = next((message["content"] for message in answer.messages if message["role"] == "user"), "")
        who = unit(ANYBODY.name if answer.user_hash == nobody else answer.user_hash, first)
        if who not in seen:
            seen.add(who)
            yield arms[answer.checkpoint], rating.value > 0


def judged(outcomes: Iterable[tuple[bool, bool]]) -> Trial:
    """Of `thumbs` in order of time: each is paired with the last one of the other model that has no partner."""
    of: dict[bool, list[bool]] = {True: [], False: []}
    alone: list[tuple[bool, bool]] = []
    wins = losses = 0
    for is_candidate, up in outcomes:
        of[is_candidate].append(up)
        if not alone or alone[-1][0] is is_candidate:
            alone.append((is_candidate, up))
            continue
        partner = alone.pop()[1]
        if up is not partner:
            won = up is is_candidate
            wins, losses = wins + won, losses + (not won)
    interval = always_valid_interval(wins, losses, ERROR)
    return Trial(Arm.of(of[True]), Arm.of(of[False]), wins, losses, always_valid(wins, losses), interval)
