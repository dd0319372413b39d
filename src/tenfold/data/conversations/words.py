"""Encode what users write as plain text, even if it contains the name of a special token.

A chat template writes its special tokens and the messages into one text. To tell them apart, `marked` inserts a mark into every
name of a special token in the messages, so that the tokenizer finds only the template's own; the tokenizer of `without_marks`
then removes the marks before it splits the text.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

MARK = "\ufdd0"  # a noncharacter of Unicode


def special_words(tokenizer: Tokenizer, stop_tokens: Iterable[int] = ()) -> re.Pattern[str] | None:
    """A pattern that matches the names of special tokens and of `stop_tokens`; None if the tokenizer has none."""
    stops = set(stop_tokens)
    words = [t.content for i, t in tokenizer.get_added_tokens_decoder().items() if (t.special or i in stops) and len(t.content) > 1]
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True)))) if words else None


def marked(messages: list[dict[str, Any]], words: re.Pattern[str] | None) -> list[dict[str, Any]]:
    """The chat with marks in names of special tokens, except in assistant messages: a model may write its own special tokens."""
    return [m if words is None or m.get("role") == "assistant" else _marked(m, words) for m in messages]


def _marked(value: Any, words: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return words.sub(lambda found: found[0][0] + MARK + found[0][1:], value)
    if isinstance(value, dict):
        return {key: _marked(one, words) for key, one in value.items()}
    return [_marked(one, words) for one in value] if isinstance(value, list) else value


def without_marks(tokenizer: Tokenizer, words: re.Pattern[str] | None) -> Tokenizer:
    """A copy of the tokenizer that removes marks from a text after it has found the special tokens."""
    stored = json.loads(tokenizer.to_str())
    own = [stored["normalizer"]] if stored["normalizer"] else []
    dropped = {"type": "Replace", "pattern": {"String": MARK}, "content": ""}
    stored["normalizer"] = {"type": "Sequence", "normalizers": [dropped, *own]}
    for token in stored["added_tokens"]:
        token["normalized"] &= not (words and words.fullmatch(token["content"]))
    return Tokenizer.from_str(json.dumps(stored))
