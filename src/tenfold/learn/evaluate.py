"""Evaluations of one's own: prompts with ideal answers, how many of them were learned, and what two models make of them.

{"prompt": "What is 2 + 3?", "ideal": "5"}          `prompt` may be messages, `ideal` several texts that are right
{"prompt": "...", "ideal": "5", "checker": "number", "language": "hi"}
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.data.conversations.chats import Chat, messages_of
from tenfold.data.conversations.rows import read_rows
from tenfold.data.text.dedup import word_shingles
from tenfold.learn.answers import Answer, Model, answers
from tenfold.learn.data import read_judgements
from tenfold.learn.statistics import FEWEST, mcnemar, paired_test, share_interval
from tenfold.model.path import model_path
from tenfold.spec.errors import TenfoldError, nearest

WORDS = 8  # of an n-gram
DIRTY = 0.8  # the share of a row's n-grams that were learned with which it counts as learned
MAX_TOKENS = 48
NONE = np.empty(0, np.uint64)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def _number(answer: str, ideal: str) -> bool:
    said = NUMBER.findall(answer.replace(",", ""))
    return bool(said) and float(said[-1]) == float(ideal)


CHECKERS: dict[str, Callable[[str, str], bool]] = {
    "exact": lambda answer, ideal: answer.strip().removesuffix(".").casefold() == ideal.strip().removesuffix(".").casefold(),
    "includes": lambda answer, ideal: ideal.casefold() in answer.casefold(),
    "regex": lambda answer, ideal: re.search(ideal, answer) is not None,
    "number": _number,  # the last one that is said
}


@dataclass(frozen=True)
class Item:
    """One prompt. The first of `ideal` is the answer whose nats are counted."""

    prompt: Chat
    ideal: tuple[str, ...]
    checker: str
    language: str

    @property
    def chat(self) -> Chat:
        return [*self.prompt, {"role": "assistant", "content": self.ideal[0]}]

    def right(self, answer: str) -> bool:
        return any(CHECKERS[self.checker](answer, ideal) for ideal in self.ideal)


def read_items(path: Path) -> list[Item]:
    """The prompts of a file. Raises TenfoldError, with the line, for a row that lacks a prompt or an ideal answer."""
    items = [_item(row, where) for where, row in read_rows(path)]
    if len(items) < FEWEST:
        raise TenfoldError(f"{path} holds {len(items)} prompts: an evaluation needs at least {FEWEST}.")
    return items


def _item(row: dict[str, Any], where: str) -> Item:
    ideal, checker = row.get("ideal"), row.get("checker", "exact")
    texts = (ideal,) if isinstance(ideal, str) else tuple(ideal) if isinstance(ideal, list) else ()
    if not row.get("prompt") or not texts or not all(isinstance(text, str) and text for text in texts):
        raise TenfoldError(f'{where}: write {{"prompt": "...", "ideal": "..."}}, or a list of texts that are right.')
    if checker not in CHECKERS:
        raise TenfoldError(f"{where}: there is no checker {checker!r}{nearest(str(checker), CHECKERS)}.")
    try:
        CHECKERS[checker]("0", texts[0])
    except (ValueError, re.error):
        raise TenfoldError(f"{where}: the ideal answer {texts[0]!r} is nothing for the checker {checker!r}.") from None
    return Item(messages_of(row["prompt"], where), texts, checker, str(row.get("language", "")))


def scored(items: Sequence[Item], said: Sequence[Answer]) -> list[bool]:
    return [item.right(answer.text) for item, answer in zip(items, said, strict=True)]


def learned(chats: Sequence[Chat], train: Sequence[Chat]) -> list[bool]:
    """Which chats were learned: of their n-grams of 8 words, or of all where there are fewer, 80 % stand in the training chats."""
    texts, corpus = [_text(chat) for chat in chats], [_text(chat) for chat in train]
    sizes = [max(1, min(WORDS, len(word_shingles(text, 1)))) for text in texts]
    known = {size: np.unique(np.concatenate([word_shingles(text, size) for text in corpus] or [NONE])) for size in set(sizes)}
    return [bool(np.isin(word_shingles(text, size), known[size]).mean() >= DIRTY) for text, size in zip(texts, sizes, strict=True)]


def _text(chat: Chat) -> bytes:
    return " ".join(message["content"] for message in chat if isinstance(message.get("content"), str)).lower().encode()


def groups(name: str, items: Sequence[Item]) -> dict[str, list[int]]:
    """All prompts of an evaluation, and those of each language with enough of them."""
    languages = sorted({item.language for item in items if item.language})
    of = {f"{name} ({language})": [i for i, item in enumerate(items) if item.language == language] for language in languages}
    return {name: list(range(len(items)))} | {group: rows for group, rows in of.items() if FEWEST <= len(rows) < len(items)}


def evaluation(items: Sequence[Item], right: Sequence[bool], nats: np.ndarray) -> dict[str, Any]:
    """The share of right answers and the nats of the ideal ones; for each language too."""
    found = _shares(right, nats)
    names = sorted({item.language for item in items if item.language})
    of = {name: [i for i, item in enumerate(items) if item.language == name] for name in names}
    return {**found, "languages": {name: _shares([right[i] for i in rows], nats[rows]) for name, rows in of.items()}}


def _shares(right: Sequence[bool], nats: np.ndarray) -> dict[str, Any]:
    return {
        "prompts": len(right), "right": sum(right) / len(right), "right_interval": share_interval(sum(right), len(right)),
        "nats": float(nats.mean()),
    }  # fmt: skip


def compared(old: tuple[Sequence[bool], np.ndarray], new: tuple[Sequence[bool], np.ndarray], level: float) -> dict[str, Any]:
    """NEW beside OLD on the same prompts: the paired difference of nats, and the probability of so many losses by chance."""
    test = paired_test(list(new[1] - old[1]), level)
    lost = mcnemar(old[0], new[0])
    return {"nats": asdict(test), "lost_p": lost, "worse": test.worse or lost < (1 - level) / 2}


def evaluate(model: Path, files: Sequence[Path], against: Path | None, corpus: Path | None) -> dict[str, dict[str, Any]]:
    """Each file's `evaluation` under its name, without the prompts that were learned; beside another model, `compared` too.

    The corpus is that of the generation where none is given. Raises TenfoldError where too few prompts are left.
    """
    own = model / "data" / "train.jsonl"
    source = corpus or (own if own.exists() else None)
    train = [chat for row in read_judgements(source) for chat in (row.liked, row.disliked) if chat is not None] if source else []
    paths = [model_path(path) for path in (model, against) if path is not None]
    models, found = [Model(path) for path in paths], {}
    for file in files:
        items = read_items(file)
        dirty = learned([item.chat for item in items], train)
        kept = [item for item, was_learned in zip(items, dirty, strict=True) if not was_learned]
        if len(kept) < FEWEST:
            raise TenfoldError(f"{sum(dirty)} of {len(items)} prompts of {file} were learned: too few are left to evaluate.")
        results = [result(one, kept) for one in models]
        found[file.stem] = {"learned": sum(dirty), **evaluation(kept, *results[0])}
        if against is not None:
            found[file.stem]["against"] = compared(results[1], results[0], 0.95)
    return found


def result(model: Model, items: Sequence[Item]) -> tuple[list[bool], np.ndarray]:
    """Which prompts a model answers right, and the nats of the ideal answers."""
    return scored(items, answers(model.path, [item.prompt for item in items], MAX_TOKENS)), model.nats(
        [item.chat for item in items]
    )
