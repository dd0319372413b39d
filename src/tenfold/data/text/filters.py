"""Quality filters: simple rules that reject texts that are not worth training on, with a reason."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache

import regex

from tenfold.spec.errors import TenfoldError, nearest

MINIMUM_CHARACTERS = 100
# Scripts that are written without spaces between words.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Yi}"
_UNSPACED = regex.compile(f"[{UNSPACED}]+")


def _too_short(text: str) -> bool:
    return len(text) < MINIMUM_CHARACTERS


def _lines_too_long(text: str) -> bool:
    """Whether lines are too long on average: over 1,000 characters with few spaces, as in minified code and data. Long paragraphs
    of prose have a space every few letters; in scripts without spaces a word is counted for every two characters."""
    if len(text) <= 1000 * max(1, len(text.splitlines())):
        return False
    unspaced = sum(len(run[0]) for run in _UNSPACED.finditer(text))
    return text.count(" ") + unspaced / 2 < 0.08 * len(text)


def _few_letters(text: str) -> bool:
    return sum(map(str.isalpha, text[:20000])) < 0.25 * min(len(text), 20000)


def _repetitive(text: str) -> bool:
    lines = text.splitlines()
    counted = Counter(line.strip() for line in lines if line.strip())
    return len(lines) > 20 and bool(counted) and sum(counted.values()) > 4 * len(counted)


def _broken(text: str) -> bool:
    return text.count("\ufffd") > 0.001 * len(text)


# The names for `--filters`: the reason for leaving a text out, and the rule. The limits are like Gopher's (Rae et al., arXiv
# 2112.11446, table A1), but wide enough for source code.
RULES: Mapping[str, tuple[str, Callable[[str], bool]]] = {
    "short": ("too short", _too_short),
    "long-lines": ("lines too long (minified or data)", _lines_too_long),
    "few-letters": ("too few letters", _few_letters),
    "repetitive": ("too repetitive", _repetitive),
    "broken": ("broken characters", _broken),
}


def quality_problem(text: str, filters: str = "all") -> str:
    """The reason why one of the rules rejects a text; an empty string if none does."""
    return next((problem for problem, rule in chosen(filters) if rule(text)), "" if text.strip() else "empty")


@lru_cache
def chosen(filters: str) -> tuple[tuple[str, Callable[[str], bool]], ...]:
    """The rules of a comma-separated list of names, or of `all` or `none`. Raises TenfoldError for an unknown name."""
    if filters in ("all", "none"):
        return tuple(RULES.values()) if filters == "all" else ()
    names = [name.strip() for name in filters.split(",")]
    for name in names:
        if name not in RULES:
            raise TenfoldError(f"There is no filter {name!r}{nearest(name, RULES)}: use all, none, or some of {', '.join(RULES)}.")
    return tuple(RULES[name] for name in names)
