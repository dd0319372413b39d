"""Chats: lists of messages, each with a role and content, in the formats of TRL and ShareGPT.

{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
{"prompt": [messages], "completion": [messages]}                            either one may be a string
{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
"""

from pathlib import Path
from typing import Any

from tenfold.data.conversations.rows import Row, read_rows
from tenfold.spec.errors import TenfoldError

Chat = list[dict[str, Any]]
ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "observation": "tool"}


def read_chats(path: Path) -> list[Chat]:
    """The chats of a file.

    Raises TenfoldError, with the line, for a row that is no chat or has no assistant message to learn from.
    """
    chats = [_chat(row, where) for where, row in read_rows(path)]
    if not chats:
        raise TenfoldError(f"{path} holds no chats: give rows with messages.")
    return chats


def prompt_of(chat: Chat) -> Chat:
    """The messages before the last one of the assistant."""
    last = max(i for i, message in enumerate(chat) if message["role"] == "assistant")
    return chat[:last]


def messages_of(value: Any, where: str, role: str = "user") -> Chat:
    """A list of messages in any of the formats; a string is one message of `role`. Raises TenfoldError for anything else."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    try:
        chat = [_message(message) for message in value]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise TenfoldError(f'{where}: write {{"messages": [{{"role": "user", "content": "..."}}, ...]}}.') from None
    for message in chat:
        if message["role"] not in ROLES:
            raise TenfoldError(f"{where}: there is no role {message['role']!r}, only {', '.join(ROLES)}.")
        if not isinstance(message.get("content"), str):
            raise TenfoldError(f"{where}: the content of a message must be text.")
    return chat


def answer_of(value: Any, where: str) -> Chat:
    """An answer: a list of one assistant message. Raises TenfoldError for anything else."""
    answer = messages_of(value, where, "assistant")
    if [message["role"] for message in answer] != ["assistant"]:
        raise TenfoldError(f"{where}: an answer must be one message of the assistant.")
    return answer


def _message(message: dict[str, Any]) -> dict[str, Any]:
    if "from" in message:
        said = str(message["from"])
        return {"role": SHAREGPT_ROLES.get(said, said), "content": message["value"]}
    known = {key: value for key, value in message.items() if value is not None or key == "content"}  # in Parquet: None if absent
    return {"role": message["role"], **known}


def _chat(row: Row, where: str) -> Chat:
    if row.get("messages") is not None or row.get("conversations") is not None:
        chat = messages_of(row.get("messages") if row.get("messages") is not None else row["conversations"], where)
    else:
        chat = [*messages_of(row.get("prompt"), where), *messages_of(row.get("completion"), where, "assistant")]
    if "assistant" not in [message["role"] for message in chat[1:]]:
        raise TenfoldError(f"{where}: there is no message of the assistant to learn from.")
    return chat
