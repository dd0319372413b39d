"""A preview of what a run on chats, preferences or rated answers would learn: the text with its learned part marked."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.text import Text

from tenfold.data.conversations.answers import PackedAnswers, pack_pairs, pack_rated
from tenfold.data.conversations.chats import read_chats
from tenfold.data.conversations.packing import PackedChats, pack
from tenfold.data.conversations.preferences import read_preferences, read_rated
from tenfold.data.conversations.tokens import ChatEncoder, EncodedChat
from tenfold.learn.data import is_file_of_rows, open_feedback
from tenfold.learn.options import Kind

MARKS = "⟦", "⟧"  # around the learned part, where the output is no terminal with colours
STYLES = {"learned": "bold green", "cut": "strike red"}


class Shown(NamedTuple):
    """An answer with its prompt: its kind (title), its tokens, and how many of them a row has room for."""

    title: str
    chat: EncodedChat
    room: int


class Found(NamedTuple):
    """The answers that a run would learn from, and their counts."""

    answers: list[Shown]
    counts: dict[str, int]


def find(model: Path, source: str, kind: Kind, seq_len: int) -> Found:
    """What the task `kind` would learn from `source`, in rows of `seq_len` tokens. Raises TenfoldError where the task would."""
    encoder = ChatEncoder.of(model)
    with TemporaryDirectory() as scratch:
        path = Path(source) if is_file_of_rows(source) else _exported(source, kind, Path(scratch) / "rows.jsonl")
        if kind == "sft":
            chats = [encoder.encode(chat) for chat in read_chats(path)]
            packed = pack(chats, seq_len)
            stops = np.isin(packed.rows.targets, sorted(encoder.vocabulary.stop_tokens)).sum()
            counts = {"chats": len(chats), **_counted(packed), "whole_answers": packed.answers, "stop_tokens": int(stops)}
            return Found([Shown("chat", chat, seq_len + 1) for chat in chats], counts)
        if kind == "dpo":
            pairs = read_preferences(path)
            answers = [(name, getattr(pair, name)) for pair in pairs for name in ("chosen", "rejected")]
            counts = {"pairs": len(pairs), **_counted(pack_pairs(pairs, encoder, seq_len))}
        else:
            rated = read_rated(path)
            answers = [("good" if answer.good else "not good", answer.chat) for answer in rated]
            counts = {"answers": len(rated), **_counted(pack_rated(rated, encoder, seq_len))}
    return Found([Shown(title, encoder.encode(chat, last_alone=True), seq_len + 1) for title, chat in answers], counts)


def _exported(database: str, kind: Kind, out: Path) -> Path:
    from tenfold.serve.feedback.export import export

    export(open_feedback(database), kind, out, test_share=0.0)
    return out


def _counted(packed: PackedChats | PackedAnswers) -> dict[str, int]:
    rows = packed.rows
    counts = {"cut": packed.cut, "left_out": packed.left_out, "rows": len(packed)}
    return {**counts, "tokens": int((rows.document >= 0).sum()), "learned_tokens": rows.target_count}


def show(model: Path, found: Found, count: int, console: Console) -> None:
    """Print the first `count` answers, their learned part in colour on a terminal and between marks elsewhere; then the counts."""
    tokenizer = ChatEncoder.of(model).tokenizer
    for shown in found.answers[:count]:
        text = Text(f"{shown.title}:\n", style="dim" if console.is_terminal else "")
        for state, tokens in _runs(shown):
            part = tokenizer.decode(tokens, skip_special_tokens=False)
            if console.is_terminal:
                text.append(part, style=STYLES.get(state, "not dim"))
            else:
                text.append(f"{MARKS[0]}{part}{MARKS[1]}" if state == "learned" else "" if state == "cut" else part)
        console.print(text, soft_wrap=True)
    console.print("; ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in found.counts.items()), highlight=False)


def _runs(shown: Shown) -> Iterator[tuple[str, list[int]]]:
    """Runs of successive tokens in the same state: read, learned, or cut (beyond the end of the row)."""
    chat = shown.chat
    states = ["cut" if i >= shown.room else "learned" if learned else "read" for i, learned in enumerate(chat.learned)]
    start = 0
    for end in range(1, len(states) + 1):
        if end == len(states) or states[end] != states[start]:
            yield states[start], chat.tokens[start:end].tolist()
            start = end
