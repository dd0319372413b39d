"""The trial of a candidate beside the release: which of them users like better, by a test that may be read at any time.

A user (or a conversation, where no user is named) counts once, by the first thumb, since the thumbs of one person are not
independent. Users of the two models whose thumbs are neighbours in time make pairs, so that the hour of the day favours neither. A
pair whose thumbs differ is a win or a loss of the candidate.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from tenfold.learn.data import open_feedback
from tenfold.learn.release import released
from tenfold.learn.statistics import always_valid, always_valid_interval, share_interval
from tenfold.serve.api.keys import ANYBODY
from tenfold.serve.api.split import unit
from tenfold.serve.feedback.feedback import Feedback, ratings, responses
from tenfold.spec.errors import TenfoldError

LOOKS = 100  # points of the course of a trial, at most
ERROR = 0.05  # the probability that two equally good models are ever told apart
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


class Look(NamedTuple):
    """Wins and losses of the candidate at a moment, and the 95 % interval of the probability of a win, valid at all moments."""

    wins: int
    losses: int
    low: float
    high: float


@dataclass(frozen=True)
class Trial:
    """Thumbs and pairs of a trial. `p` and the 95 % interval of the share of wins are valid however often they are read."""

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
    """The trial of the candidate of `home`: the fields of a `Trial`, its `verdict` and `course`, both paths and the `share`.

    Raises TenfoldError where there is no candidate or no feedback database.
    """
    now = released(home)
    if now is None or "candidate" not in now:
        raise TenfoldError(f"No candidate of {home} is tried: begin a trial with `tenfold learn release NEW --share 0.1`.")
    candidate = now["candidate"]
    arms = {candidate["sha256"]: True, now["sha256"]: False}
    outcomes = list(thumbs(open_feedback(database), arms, candidate["since"]))
    found = judged(outcomes)
    names = {"candidate_path": candidate["path"], "released_path": now["path"], "share": candidate["share"]}
    looks = [look._asdict() for look in course(paired(outcomes))]
    return {**names, **asdict(found), "verdict": found.verdict, "course": looks}


def thumbs(feedback: Feedback, arms: dict[str, bool], since: float) -> Iterator[tuple[bool, bool]]:
    """The first thumb of each user or conversation, in order of time: (whether the candidate answered, whether it was up).

    `arms` says for the hash of each model's weights whether it is the candidate. Answers before `since` (seconds of Unix time) and
    answers of other models do not count.
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
    """The trial after these `thumbs`, in order of time."""
    found = list(outcomes)
    candidate, beside = (Arm.of([up for is_candidate, up in found if is_candidate is which]) for which in (True, False))
    wins, losses = paired(found)[-1]
    return Trial(candidate, beside, wins, losses, always_valid(wins, losses), always_valid_interval(wins, losses, ERROR))


def paired(outcomes: Iterable[tuple[bool, bool]]) -> list[tuple[int, int]]:
    """Wins and losses of the candidate at the beginning, and after each pair whose thumbs differ.

    Each thumb is paired with the last one of the other model that has no partner yet.
    """
    alone: list[tuple[bool, bool]] = []
    counts = [(0, 0)]
    for is_candidate, up in outcomes:
        if not alone or alone[-1][0] is is_candidate:
            alone.append((is_candidate, up))
            continue
        partner = alone.pop()[1]
        if up is not partner:
            wins, losses = counts[-1]
            won = up is is_candidate
            counts.append((wins + won, losses + (not won)))
    return counts


def course(counts: list[tuple[int, int]]) -> list[Look]:
    """At most `LOOKS` points of the course, evenly spaced, the last one among them; `counts` are those of `paired`."""
    return [
        Look(wins, losses, *always_valid_interval(wins, losses, ERROR))
        for wins, losses in (counts[i] for i in np.linspace(0, len(counts) - 1, min(LOOKS, len(counts))).round().astype(int))
    ]
