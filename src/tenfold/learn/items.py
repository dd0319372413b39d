"""Evaluation files: prompts with ideal answers, or with the name of a function that checks the answer. A row is one of

{"prompt": "What is 2 + 3?", "ideal": "5"}          `prompt` may be a list of messages, `ideal` a list of right answers
{"prompt": "...", "ideal": "5", "checker": "number", "language": "hi"}
{"prompt": "Write three words.", "checker": "check_words", "count": 3}

def check_words(answer, count):                     in the file of checkers; its arguments are the answer and columns of the row
    return len(answer.split()) == count
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.data.conversations.chats import Chat, messages_of
from tenfold.data.conversations.rows import read_rows
from tenfold.learn.functions import read_functions, taken, told
from tenfold.learn.statistics import FEWEST
from tenfold.spec.errors import TenfoldError, nearest

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def _number(answer: str, ideal: str) -> bool:
    said = NUMBER.findall(answer.replace(",", ""))
    return bool(said) and float(said[-1]) == float(ideal)


CHECKERS: dict[str, Callable[[str, str], bool]] = {
    "exact": lambda answer, ideal: answer.strip().removesuffix(".").casefold() == ideal.strip().removesuffix(".").casefold(),
    "includes": lambda answer, ideal: ideal.casefold() in answer.casefold(),
    "regex": lambda answer, ideal: re.search(ideal, answer) is not None,
    "number": _number,  # the last number of the answer
}


@dataclass(frozen=True)
class Item:
    """A prompt with its checker. The nats of the first answer in `ideal` are measured; a user's checker needs no `ideal`."""

    prompt: Chat
    ideal: tuple[str, ...]
    right: Callable[[str], bool]
    language: str

    @property
    def chat(self) -> Chat:
        """The prompt with its first ideal answer, or alone where it has none."""
        return [*self.prompt, *({"role": "assistant", "content": ideal} for ideal in self.ideal[:1])]


def read_items(path: Path, checkers: Path | None = None) -> list[Item]:
    """The prompts of the file `path`; rows may name functions of the Python file `checkers`.

    Raises TenfoldError, with the line, for a row without a prompt or ideal answer, or with an unknown checker.
    """
    functions = read_functions(str(checkers), "check") if checkers is not None else {}
    items = [_item(row, where, functions) for where, row in read_rows(path)]
    if len(items) < FEWEST:
        raise TenfoldError(f"{path} holds {len(items)} prompts: an evaluation needs at least {FEWEST}.")
    return items


def read_evaluations(files: Sequence[Path], checkers: Path | None = None) -> dict[str, list[Item]]:
    """The prompts of each file by the file's name without its ending. Raises TenfoldError as `read_items`, and for equal names."""
    found: dict[str, list[Item]] = {}
    for file in files:
        if file.stem in found:
            raise TenfoldError(f"{file}: two evaluations are named {file.stem!r}: rename one of the files.")
        found[file.stem] = read_items(file, checkers)
    return found


def _item(row: dict[str, Any], where: str, functions: dict[str, Callable[..., Any]]) -> Item:
    ideal, checker = row.get("ideal"), row.get("checker", "exact")
    texts = (ideal,) if isinstance(ideal, str) else tuple(ideal) if isinstance(ideal, list) else ()
    known = {**CHECKERS, **functions}
    if checker not in known:
        raise TenfoldError(f"{where}: there is no checker {checker!r}{nearest(str(checker), known)}.")
    needed = checker not in functions or ideal is not None
    if not row.get("prompt") or (needed and not texts) or not all(isinstance(text, str) and text for text in texts):
        raise TenfoldError(f'{where}: write {{"prompt": "...", "ideal": "..."}}, or a list of right answers as "ideal".')
    prompt = messages_of(row["prompt"], where)
    language = str(row.get("language", "")) or script(prompt[-1]["content"])
    if checker in functions:
        return Item(prompt, texts, _own(functions[checker], row, f"{where}: the checker {checker}"), language)
    for text in texts:
        try:
            CHECKERS[checker]("0", text)
        except (ValueError, re.error):
            raise TenfoldError(f"{where}: the checker {checker!r} cannot read the ideal answer {text!r}.") from None
    return Item(prompt, texts, lambda answer: any(CHECKERS[checker](answer, text) for text in texts), language)


def _own(function: Callable[..., Any], row: dict[str, Any], what: str) -> Callable[[str], bool]:
    """A user's function as a checker that raises TenfoldError where the function fails, or returns neither True nor False."""

    def right(answer: str) -> bool:
        with told(what):
            verdict = function(**taken(function, {**row, "answer": answer}))
        if verdict is not True and verdict is not False:
            raise TenfoldError(f"{what} returned {verdict!r} for the answer {answer[:80]!r}: return True or False.")
        return verdict

    return right


def script(text: str) -> str:
    """The script of most letters of a text ("latin", "devanagari", ...), which stands for a language that is not named."""
    found = Counter(unicodedata.name(letter, "").partition(" ")[0].lower() for letter in text if letter.isalpha())
    return max(found, key=lambda name: found[name]) if found else ""


def by_language(languages: Sequence[str]) -> dict[str, list[int]]:
    """The row numbers of each language with at least `FEWEST` rows; none where all rows have one language."""
    of: dict[str, list[int]] = {}
    for i, language in enumerate(languages):
        of.setdefault(language, []).append(i)
    return {name: rows for name, rows in sorted(of.items()) if name and FEWEST <= len(rows) < len(languages)}
