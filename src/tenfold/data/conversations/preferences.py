"""Preferences and rated answers, in TRL's formats. A prompt or an answer that is a string stands for one message.

{"prompt": [messages], "chosen": [answer], "rejected": [answer]}     a preference; without "prompt" both hold all messages
{"prompt": [messages], "completion": [answer], "label": true}        a rated answer; a preference counts as two
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.data.conversations.chats import Chat, answer_of, messages_of
from tenfold.data.conversations.rows import Row, read_rows
from tenfold.spec.errors import TenfoldError


@dataclass(frozen=True)
class Preference:
    """Two chats that differ in their last answer."""

    chosen: Chat
    rejected: Chat


@dataclass(frozen=True)
class RatedAnswer:
    """A chat whose last answer was `good`, or was not."""

    chat: Chat
    good: bool


def read_preferences(path: Path) -> list[Preference]:
    """The preferences of a file. Raises TenfoldError, with the line, for an invalid row, such as one with two equal answers."""
    found = [_preference(row, where) for where, row in read_rows(path)]
    if not found:
        raise TenfoldError(f"{path} holds no preferences: give rows with prompt, chosen and rejected.")
    return found


def read_rated(path: Path) -> list[RatedAnswer]:
    """The rated answers of a file; a preference gives a good and a bad one. Raises TenfoldError, with the line, for an invalid
    row."""
    found: list[RatedAnswer] = []
    for where, row in read_rows(path):
        if row.get("chosen") is not None:
            pair = _preference(row, where)
            found += [RatedAnswer(pair.chosen, True), RatedAnswer(pair.rejected, False)]
        elif not isinstance(row.get("label"), bool):
            raise TenfoldError(f"{where}: write a prompt, a completion, and a label that is true or false.")
        else:
            found.append(RatedAnswer(_whole(row, "completion", where), row["label"]))
    if not found:
        raise TenfoldError(f"{path} holds no rated answers: give rows with prompt, completion and label.")
    return found


def _preference(row: Row, where: str) -> Preference:
    chosen, rejected = (_whole(row, key, where) for key in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise TenfoldError(f"{where}: the chosen and the rejected answer must follow the same prompt.")
    if chosen[-1]["content"] == rejected[-1]["content"]:
        raise TenfoldError(f"{where}: the chosen and the rejected answer are equal: leave the row out.")
    return Preference(chosen, rejected)


def _whole(row: Row, key: str, where: str) -> Chat:
    """The whole chat that ends in the answer in the column `key`."""
    value: Any = row.get(key)
    if value is None:
        raise TenfoldError(f'{where}: write {{"prompt": [...], "chosen": [...], "rejected": [...]}}.')
    if row.get("prompt") is None and not isinstance(value, str):
        chat = messages_of(value, where)
        chat = [*chat[:-1], *answer_of(chat[-1:], where)]
    else:
        chat = [*messages_of(row.get("prompt"), where), *answer_of(value, where)]
    if len(chat) < 2:
        raise TenfoldError(f"{where}: an answer must follow a prompt.")
    return chat
