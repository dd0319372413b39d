"""What people write in a chat is text: where their words spell a special token, they are no special token.

A chat template writes its special tokens and what was said into one text. A mark within such words keeps the two apart until the
tokenizer has found the template's special tokens; it is gone before the text is split.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

MARK = "\ufdd0"  # a noncharacter of Unicode


def special_words(tokenizer: Tokenizer, stop_tokens: Iterable[int] = ()) -> re.Pattern[str] | None:
    """What spells a special token, or one that ends an answer; None where a tokenizer has none."""
    stops = set(stop_tokens)
    words = [t.content for i, t in tokenizer.get_added_tokens_decoder().items() if (t.special or i in stops) and len(t.content) > 1]
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True)))) if words else None


def marked(messages: list[dict[str, Any]], words: re.Pattern[str] | None) -> list[dict[str, Any]]:
    """The same chat with marks within words that spell special tokens, but for what a model answered: its tokens are its own."""
    return [m if words is None or m.get("role") == "assistant" else _marked(m, words) for m in messages]


def _marked(value: Any, words: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return words.sub(lambda found: found[0][0] + MARK + found[0][1:], value)
    if isinstance(value, dict):
        return {key: _marked(one, words) for key, one in value.items()}
    return [_marked(one, words) for one in value] if isinstance(value, list) else value


def without_marks(tokenizer: Tokenizer, words: re.Pattern[str] | None) -> Tokenizer:
    """The same tokenizer for text with marks, which it drops once it has found its special tokens."""
    stored = json.loads(tokenizer.to_str())
    own = [stored["normalizer"]] if stored["normalizer"] else []
    dropped = {"type": "Replace", "pattern": {"String": MARK}, "content": ""}
    stored["normalizer"] = {"type": "Sequence", "normalizers": [dropped, *own]}
    for token in stored["added_tokens"]:
        token["normalized"] &= not (words and words.fullmatch(token["content"]))
    return Tokenizer.from_str(json.dumps(stored))
