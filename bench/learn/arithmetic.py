"""Sums of two or three small numbers from reasoning-gym, for `--rewards` of `tenfold learn grpo`.

The reward is 1 if the last number of the answer is right. reasoning-gym's own check wants the number alone, but a small chat model
says it in a sentence.
"""

import re
from typing import Any

import reasoning_gym

LEARNED, UNSEEN = 0, 99  # seeds


def prompts(seed: int = LEARNED, count: int = 1000) -> list[dict[str, Any]]:
    dataset = reasoning_gym.create_dataset("chain_sum", size=count, seed=seed, min_terms=2, max_terms=3, min_digits=1, max_digits=1)
    return [{"prompt": [{"role": "user", "content": row["question"]}], "ideal": row["answer"]} for row in dataset]


def reward(completions: list[list[dict[str, str]]], ideal: list[str]) -> list[float]:
    return [float(last_number(answer[-1]["content"]) == right) for answer, right in zip(completions, ideal, strict=True)]


def last_number(text: str) -> str | None:
    found = re.findall(r"-?\d+", text.replace(",", ""))
    return found[-1] if found else None
