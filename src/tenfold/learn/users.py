"""Simulated users: they ask what has one right answer, judge what they get by a rule, and say what it should have been.

Every user asks questions of its own, so that those of held-out users have not been learned.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tenfold.learn.release import post
from tenfold.serve.feedback.feedback import Feedback, corrections, ratings, responses

MAX_TOKENS = 12
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Norway": "Oslo", "Peru": "Lima",
    "Greece": "Athens", "Cuba": "Havana", "Kenya": "Nairobi", "Austria": "Vienna", "Poland": "Warsaw", "Russia": "Moscow",
    "Ireland": "Dublin", "Portugal": "Lisbon", "Iran": "Tehran", "Iraq": "Baghdad", "Germany": "Berlin", "China": "Beijing",
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """`answer` is the whole of what should be said."""

    user: str
    prompt: str
    answer: str

    def is_right(self, text: str) -> bool:
        """The rule: nothing but the answer, with or without a full stop."""
        return text.strip().removesuffix(".").lower() == self.answer.lower()


def questions(users: int, each: int) -> list[Question]:
    """What `users` users ask, `each` so many, no question twice; always the same."""
    asked = {f"What is {a} + {b}? Reply with the number alone.": str(a + b) for a in range(2, 10) for b in range(2, 10)}
    asked |= {f"What is the capital of {land}? Reply with one word.": city for land, city in CAPITALS.items()}
    drawn = random.Random(0).sample(list(asked.items()), users * each)
    return [Question(f"user-{i // each:03}", prompt, answer) for i, (prompt, answer) in enumerate(drawn)]


def ask(server: str, question: Question, *, store: bool = False) -> tuple[str, str]:
    """The id of the answer, and its text. Raises TenfoldError for a request that was not answered."""
    body = {
        "messages": [{"role": "user", "content": question.prompt}], "max_tokens": MAX_TOKENS, "temperature": 0, "store": store,
        "user": question.user,
    }  # fmt: skip
    answer = post(f"{server}/v1/chat/completions", body)
    return answer["id"], answer["choices"][0]["message"]["content"]


def ask_and_judge(server: str, question: Question) -> None:
    """A thumb up; or a thumb down, and the answer that was right."""
    answer_id, text = ask(server, question, store=True)
    said = {"rating": 1} if question.is_right(text) else {"rating": -1, "correction": question.answer}
    post(f"{server}/v1/feedback", {"consent": True, "user": question.user, "response_id": answer_id, **said})


def unjudged(feedback: Feedback, asked: list[Question]) -> Iterator[Question]:
    """The questions whose answers have not been judged yet."""
    judged = {row.response_id for row in feedback.rows(corrections)}
    judged |= {row.response_id for row in feedback.rows(ratings) if row.value > 0}
    known = {(row.user_hash, row.messages[-1]["content"]) for row in feedback.rows(responses) if row.id in judged}
    return (q for q in asked if (feedback.user_hash(q.user), q.prompt) not in known)


@dataclass(frozen=True)
class Taste:
    """A hidden preference: answers that are short, end with a question, and never mention `shunned`.

    An answer has three points for a question at its end, loses four for the word, and one for each ten words. Of two answers
    a user prefers the one with more points, with the probability of Bradley and Terry at a `noise` in points. Whatever learns from
    these users sees their judgements alone.
    """

    shunned: str = "however"
    noise: float = 0.5

    def points(self, text: str) -> float:
        words = text.lower().split()
        return 3 * text.rstrip().endswith("?") - 4 * (self.shunned in text.lower()) - len(words) / 10

    def prefers_first(self, first: str, second: str, chance: random.Random) -> bool:
        margin = (self.points(first) - self.points(second)) / self.noise
        return chance.random() < 1 / (1 + math.exp(-max(-30.0, min(30.0, margin))))


def compare_two(server: str, user: str, prompt: str, taste: Taste, chance: random.Random) -> None:
    """Ask twice, and say which of the two answers is better."""
    ids, texts = [], []
    for _ in range(2):
        body = {
            "messages": [{"role": "user", "content": prompt}], "max_tokens": 48, "temperature": 1.0, "seed": chance.getrandbits(31),
            "store": True, "user": user,
        }  # fmt: skip
        answer = post(f"{server}/v1/chat/completions", body)
        ids.append(answer["id"])
        texts.append(answer["choices"][0]["message"]["content"])
    winner = "tie" if texts[0] == texts[1] else "a" if taste.prefers_first(texts[0], texts[1], chance) else "b"
    said = {"response_id": ids[0], "other_response_id": ids[1], "winner": winner}
    post(f"{server}/v1/feedback", {"consent": True, "user": user, **said})
