"""Simulated users with a taste: they talk, get two answers, and give the one they prefer a thumb up and the other a thumb down.

Some also say what the worse one should have been. No two users say the same, so that what those who are held out say has not been
learned.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tenfold.learn.release import post
from tenfold.serve.feedback.feedback import Feedback, ratings, responses

MAX_TOKENS = 48
TEMPERATURE = 1.0  # at which two answers differ
THINGS = (
    "apples", "bees", "books", "bread", "bridges", "buses", "carpets", "cats", "chess", "clouds", "cricket", "dogs",
    "drums", "elephants", "fish", "flutes", "frogs", "gardens", "glaciers", "goats", "honey", "horses", "islands", "kites",
    "lakes", "lamps", "mangoes", "maps", "mirrors", "moss", "mountains", "novels", "oceans", "onions", "owls", "painting",
    "pianos", "poems", "potatoes", "rain",
)  # fmt: skip
OPENINGS = ("I like {}.", "Let us talk about {}.", "Yesterday I read about {}.", "My friend knows a lot about {}.")


@dataclass(frozen=True)
class Asked:
    """What a user says first, and the answer that they would have `liked` best, where they say so."""

    user: str
    prompt: str
    liked: str = ""


def asked_by(users: int, crowd: int = 0) -> list[Asked]:
    """What `users` users say, one thing each, none twice; always the same. Another `crowd` is of other users."""
    said = [
        (f"{opening.format(thing)} Answer in one short sentence.", f"What do you like about {thing}?")
        for opening in OPENINGS
        for thing in THINGS
    ]
    return [Asked(f"user-{crowd * users + i:03}", *one) for i, one in enumerate(random.Random(crowd).sample(said, users))]


def ask(server: str, asked: Asked, *, seed: int = 0, store: bool = False) -> tuple[str, str]:
    """The id of the answer, and its text. Raises TenfoldError for a request that was not answered."""
    body = {
        "messages": [{"role": "user", "content": asked.prompt}], "max_tokens": MAX_TOKENS, "temperature": TEMPERATURE,
        "seed": seed, "store": store, "user": asked.user,
    }  # fmt: skip
    answer = post(f"{server}/v1/chat/completions", body)
    return answer["id"], answer["choices"][0]["message"]["content"]


@dataclass(frozen=True)
class Taste:
    """A hidden preference: answers that are short, end with a question, and never mention `shunned`.

    An answer has three points for a question at its end, loses four for the word, and one for each ten words. Of two answers
    a user prefers the one with more points, with the probability of Bradley and Terry at a `noise` in points. Whatever learns from
    these users sees their thumbs alone.
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
    """Ask twice, and give a thumb up to the better answer and a thumb down to the other; equal ones are both liked.

    A user who knows what they would have liked says so of the one that is not.
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
    """Those whose two answers do not have their thumbs yet."""
    rated = {row.response_id for row in feedback.rows(ratings)}
    known = [(row.user_hash, row.messages[-1]["content"]) for row in feedback.rows(responses) if row.id in rated]
    return (one for one in asked if known.count((feedback.user_hash(one.user), one.prompt)) < 2)
