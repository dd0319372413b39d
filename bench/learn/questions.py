"""Questions with one right answer, for tuning and for evaluation."""

import random
from typing import NamedTuple

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Norway": "Oslo", "Peru": "Lima",
    "Greece": "Athens", "Cuba": "Havana", "Kenya": "Nairobi", "Austria": "Vienna", "Poland": "Warsaw", "Russia": "Moscow",
    "Ireland": "Dublin", "Portugal": "Lisbon", "Iran": "Tehran", "Iraq": "Baghdad", "Germany": "Berlin", "China": "Beijing",
}  # fmt: skip


class Question(NamedTuple):
    prompt: str
    answer: str


def questions(count: int) -> list[Question]:
    """`count` different questions; the same ones for each call."""
    asked = {f"What is {a} + {b}? Reply with the number alone.": str(a + b) for a in range(2, 10) for b in range(2, 10)}
    asked |= {f"What is the capital of {land}? Reply with one word.": city for land, city in CAPITALS.items()}
    return [Question(*one) for one in random.Random(0).sample(list(asked.items()), count)]
