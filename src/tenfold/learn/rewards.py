"""Reward functions, and the prompts whose answers they score.

A Python file defines functions whose names begin with `reward`. They are called as TRL calls them: with lists of `prompts`, of
`completions`, and of every further column of the prompts' rows, and return a number for each answer. The reward is their sum. A
function `prompts()` in the same file may return the rows. `reasoning-gym:NAME` gives both for a task of that package.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.data.conversations.chats import Chat, messages_of
from tenfold.data.conversations.rows import Row, read_rows
from tenfold.learn.functions import read_functions, run_file, taken, told
from tenfold.spec.errors import NotInstalled, TenfoldError, nearest
from tenfold.spec.files import file_sha256

GYM = "reasoning-gym:"
GYM_ROWS = 5000  # prompts of a task of reasoning-gym


@dataclass(frozen=True)
class Rewards:
    """Reward functions by name, and the file or task `source` that they are from."""

    source: str
    functions: dict[str, Callable[..., Any]]

    @property
    def fingerprint(self) -> str:
        """A hash of the file without the modules that it imports, or the name of the task."""
        file = Path(self.source)
        return file_sha256(file)[:16] if file.is_file() else self.source

    def __call__(self, rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
        """The reward of each answer; `rows` has the row of each answer's prompt.

        Raises TenfoldError where a function fails, or does not return one finite number for each answer.
        """
        columns = {key: [row.get(key) for row in rows] for key in rows[0] if key != "prompt"}
        spoken = [
            text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
            for row, text in zip(rows, answers, strict=True)
        ]
        given = {"prompts": [row["prompt"] for row in rows], "completions": spoken, **columns}
        scores = [self._scores(name, function, given, answers) for name, function in self.functions.items()]
        return [math.fsum(values) for values in zip(*scores, strict=True)]

    def _scores(self, name: str, function: Callable[..., Any], given: dict[str, Any], answers: Sequence[str]) -> list[float]:
        what = f"The reward {name} of {self.source}"
        with told(what):
            values = [0.0 if value is None else float(value) for value in function(**taken(function, given))]
        if len(values) != len(answers):
            raise TenfoldError(f"{what} gave {len(values)} numbers for {len(answers)} answers: return one for each.")
        for value, answer in zip(values, answers, strict=True):
            if not math.isfinite(value):
                raise TenfoldError(f"{what} gave {value} for the answer {answer[:80]!r}: return a finite number.")
        return values


def read_rewards(source: str) -> Rewards:
    """The rewards of a file or a task of reasoning-gym. Raises TenfoldError where it is missing, fails, or has no rewards."""
    if source.startswith(GYM):
        dataset = _gym(source)
        return Rewards(source, {"score_answer": lambda completions, entry: list(map(dataset.score_answer, completions, entry))})
    return Rewards(source, read_functions(source, "reward"))


def read_prompts(source: str) -> list[tuple[Row, Chat]]:
    """The rows and their prompts as messages, from a file of rows, a file of rewards or reasoning-gym.

    Raises TenfoldError where there are none, or a row has no prompt.
    """
    if source.startswith(GYM):
        rows = [(source, {"prompt": entry["question"], "entry": entry}) for entry in _gym(source)]
    elif source.endswith(".py"):
        if not callable(found := run_file(source, "reward").get("prompts")):
            raise TenfoldError(f"{source} gives no prompts: write a function prompts(), or give --data.")
        rows = [(f"{source}, prompt {number}", row) for number, row in enumerate(found(), 1)]
    else:
        rows = list(read_rows(Path(source)))
    read = []
    for where, row in rows:
        if not isinstance(row, dict) or row.get("prompt") is None:
            raise TenfoldError(f'{where}: write {{"prompt": "..."}}.')
        read.append((row, messages_of(row["prompt"], where)))
    if not read:
        raise TenfoldError(f"{source} holds no prompts.")
    return read


def _gym(source: str) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise NotInstalled("reasoning-gym is not installed: pip install 'tenfold[rewards]'.") from None
    name = source.removeprefix(GYM)
    if name not in DATASETS:
        raise TenfoldError(f"reasoning-gym has no task {name!r}{nearest(name, DATASETS)}.")
    return reasoning_gym.create_dataset(name, size=GYM_ROWS, seed=0)
