"""Simulated users with a taste: they ask, get two answers, and give the better one a thumb up and the other a thumb down.

Some also correct the worse answer. No two users of a crowd say the same, so that what the held-out users say is not in the
training data.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tenfold.learn.release import post
from tenfold.serve.feedback.feedback import Feedback, ratings, responses

MAX_TOKENS = 48  # of an answer
TEMPERATURE = 1.0  # high enough for the two answers to differ
THINGS = (
    "apples", "bees", "books", "bread", "bridges", "buses", "carpets", "cats", "chess", "clouds", "cricket", "dogs",
    "drums", "elephants", "fish", "flutes", "frogs", "gardens", "glaciers", "goats", "honey", "horses", "islands", "kites",
    "lakes", "lamps", "mangoes", "maps", "mirrors", "moss", "mountains", "novels", "oceans", "onions", "owls", "painting",
    "pianos", "poems", "potatoes", "rain",
)  # fmt: skip
OPENINGS = ("I like {}.", "Let us talk about {}.", "Yesterday I read about {}.", "My friend knows a lot about {}.")


@dataclass(frozen=True)
class Asked:
    """What a user says first, and the answer that they would have `liked` best, empty where they do not tell it."""

    user: str
    prompt: str
    liked: str = ""


def asked_by(users: int, crowd: int = 0) -> list[Asked]:
    """What each of `users` users says, without repetition; a pure function of the arguments. Another `crowd` has other users."""
    said = [
        (f"{opening.format(thing)} Answer in one short sentence.", f"What do you like about {thing}?")
        for opening in OPENINGS
        for thing in THINGS
    ]
    return [Asked(f"user-{crowd * users + i:03}", *one) for i, one in enumerate(random.Random(crowd).sample(said, users))]


def ask(server: str, asked: Asked, *, seed: int = 0, store: bool = False) -> tuple[str, str]:
    """Ask the server once; returns the id and the text of the answer. Raises TenfoldError where the request fails."""
    body = {
        "messages": [{"role": "user", "content": asked.prompt}], "max_tokens": MAX_TOKENS, "temperature": TEMPERATURE,
        "seed": seed, "store": store, "user": asked.user,
    }  # fmt: skip
    answer = post(f"{server}/v1/chat/completions", body)
    return answer["id"], answer["choices"][0]["message"]["content"]


@dataclass(frozen=True)
class Taste:
    """A hidden preference: answers that are short, end with a question, and never mention `shunned`.

    An answer gets three points for a question at its end, and loses four for the word `shunned` and one for every ten words. A
    user prefers one answer to another with the probability of the Bradley-Terry model: the logistic function of the difference in
    points over `noise`. What learns from these users sees only their thumbs and corrections.
    """

    shunned: str = "however"
    noise: float = 0.5

    def points(self, text: str) -> float:
        words = text.lower().split()
        return 3 * text.rstrip().endswith("?") - 4 * (self.shunned in text.lower()) - len(words) / 10

    def prefers_first(self, first: str, second: str, chance: random.Random) -> bool:
        margin = (self.points(first) - self.points(second)) / self.noise
        return chance.random() < 1 / (1 + math.exp(-max(-30.0, min(30.0, margin))))


def judge_two(server: str, asked: Asked, taste: Taste = Taste()) -> None:
    """Ask twice, and give a thumb up to the better answer and a thumb down to the other; equal answers both get a thumb up.

    A user with an answer that they would have `liked` sends it as the correction of the worse one.
    """
    chance = random.Random(f"{asked.user}: {asked.prompt}")
    (first, text), (second, other) = (ask(server, asked, seed=chance.getrandbits(31), store=True) for _ in range(2))
    liked = taste.prefers_first(text, other, chance)
    for answer, rating in ((first, liked or text == other), (second, not liked or text == other)):
        said: dict[str, Any] = {"response_id": answer, "rating": 1 if rating else -1}
        if asked.liked and not rating:
            said["correction"] = asked.liked
        post(f"{server}/v1/feedback", {"consent": True, "user": asked.user, **said})


def unjudged(feedback: Feedback, asked: list[Asked]) -> Iterator[Asked]:
    """The users in `asked` whose two answers do not both have a thumb yet."""
    rated = {row.response_id for row in feedback.rows(ratings)}
    known = [(row.user_hash, row.messages[-1]["content"]) for row in feedback.rows(responses) if row.id in rated]
    return (one for one in asked if known.count((feedback.user_hash(one.user), one.prompt)) < 2)
