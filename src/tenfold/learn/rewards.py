"""Rewards as Python functions, and the prompts whose answers they judge.

A file gives functions whose names begin with `reward`, as TRL calls them: with lists of `prompts` and `completions`, and of each
further column of the prompts' rows; they return a number for each. Their sum is the reward. Where the file also has a function
`prompts()`, that gives the rows. `reasoning-gym:NAME` has both, for one of that package's tasks.
"""

import inspect
import math
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.data.conversations.chats import Chat, messages_of
from tenfold.data.conversations.rows import Row, read_rows
from tenfold.spec.errors import NotInstalled, TenfoldError, nearest

GYM = "reasoning-gym:"
GYM_ROWS = 5000


@dataclass(frozen=True)
class Rewards:
    """Functions by name, from `source`."""

    source: str
    found = _run_file(source).items()
    functions: dict[str, Callable[..., Any]] = {name: f for name, f in found if name.startswith("reward") and inspect.isfunction(f)}
    if not functions:
        raise TenfoldError(f"{source} has no rewards: write a function whose name begins with reward.")
    return Rewards(source, functions)


def read_prompts(source: str) -> list[tuple[Row, Chat]]:
    """Rows with a prompt, and its messages: of a file of rows or of rewards, or of reasoning-gym. Raises TenfoldError for none."""
    if source.startswith(GYM):
        rows = [(source, {"prompt": entry["question"], "entry": entry}) for entry in _gym(source)]
    elif source.endswith(".py"):
        if not callable(found := _run_file(source).get("prompts")):
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


def _run_file(source: str) -> dict[str, Any]:
    if not Path(source).is_file():
        raise TenfoldError(f"There is no file of rewards {source}.")
    try:
        return runpy.run_path(source)
    except Exception as error:  # a user's file may fail in any way
        raise TenfoldError(f"{source} cannot be run: {type(error).__name__}: {error}.") from error


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
