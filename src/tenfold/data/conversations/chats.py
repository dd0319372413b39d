"""Chats: rows of `messages`, each with a role and content, in JSON lines as TRL reads and writes them."""

import json
from pathlib import Path
from typing import Any

from tenfold.spec.errors import TenfoldError

Chat = list[dict[str, Any]]
ROLES = ("system", "developer", "user", "assistant", "tool")


def read_chats(path: Path) -> list[Chat]:
    """The chats of a file, a line each: `{"messages": [...]}`, or `{"prompt": [...], "completion": [...]}`.

    Raises TenfoldError, with the line, for what is no chat or has no answer to learn from.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TenfoldError(f"The chats in {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    chats = [_chat(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not chats:
        raise TenfoldError(f"{path} holds no chats: give JSON lines with messages.")
    return chats


def prompt_of(chat: Chat) -> Chat:
    """The messages before the last answer."""
    last = max(i for i, message in enumerate(chat) if message["role"] == "assistant")
    return chat[:last]


def _chat(line: str, where: str) -> Chat:
    try:
        row = json.loads(line)
        chat = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
        roles = [message["role"] for message in chat]
    except (ValueError, KeyError, TypeError):
        raise TenfoldError(f'{where}: write {{"messages": [{{"role": "user", "content": "..."}}, ...]}}.') from None
    for message in chat:
        if message["role"] not in ROLES:
            raise TenfoldError(f"{where}: there is no role {message['role']!r}, only {', '.join(ROLES)}.")
        if not isinstance(message.get("content"), str):
            raise TenfoldError(f"{where}: the content of a message must be text.")
    if "assistant" not in roles[1:]:
        raise TenfoldError(f"{where}: there is no answer of an assistant to learn from.")
    return chat
