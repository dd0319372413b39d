"""Evaluation of a model on files of prompts, alone or compared with another model; prompts in the training data are left out."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.data.conversations.chats import Chat
from tenfold.data.text.dedup import word_shingles
from tenfold.learn.answers import Model, answers
from tenfold.learn.data import read_judgements
from tenfold.learn.items import Item, by_language, read_evaluations
from tenfold.learn.options import EvaluateOptions
from tenfold.learn.statistics import FEWEST, mcnemar, paired_test, share_interval
from tenfold.model.path import model_path
from tenfold.spec.errors import TenfoldError

WORDS = 8  # of an n-gram
DIRTY = 0.8  # share of a prompt's n-grams in the training data from which on the prompt counts as learned
MAX_TOKENS = 48  # of an answer
NONE = np.empty(0, np.uint64)


def learned(chats: Sequence[Chat], train: Sequence[Chat]) -> list[bool]:
    """Which `chats` are in the training data: 80 % of their n-grams of 8 words are in `train`. Shorter chats are one n-gram."""
    texts, corpus = [_text(chat) for chat in chats], [_text(chat) for chat in train]
    sizes = [max(1, min(WORDS, len(word_shingles(text, 1)))) for text in texts]
    known = {size: np.unique(np.concatenate([word_shingles(text, size) for text in corpus] or [NONE])) for size in set(sizes)}
    return [bool(np.isin(word_shingles(text, size), known[size]).mean() >= DIRTY) for text, size in zip(texts, sizes, strict=True)]


def _text(chat: Chat) -> bytes:
    return " ".join(message["content"] for message in chat if isinstance(message.get("content"), str)).lower().encode()


@dataclass(frozen=True)
class Answered:
    """Which prompts were answered right (bool [n]), and the negative log-likelihood of the ideal answers in nats (float [n]).

    `known` (bool [n]) says which prompts have an ideal answer; the others have 0 nats.
    """

    right: np.ndarray
    nats: np.ndarray
    known: np.ndarray

    def of(self, rows: Sequence[int]) -> "Answered":
        return Answered(self.right[rows], self.nats[rows], self.known[rows])

    @property
    def shares(self) -> dict[str, Any]:
        count, n = int(self.right.sum()), len(self.right)
        nats = float(self.nats[self.known].mean()) if self.known.any() else None
        return {"prompts": n, "right": count / n, "right_interval": share_interval(count, n), "nats": nats}


def answered(model: Model, items: Sequence[Item]) -> Answered:
    """The answers of a model to an evaluation, checked. Raises TenfoldError where a checker fails."""
    said = answers(model.path, [item.prompt for item in items], MAX_TOKENS)
    right = [item.right(answer.text) for item, answer in zip(items, said, strict=True)]
    known, nats = np.array([bool(item.ideal) for item in items]), np.zeros(len(items))
    if known.any():
        nats[known] = model.nats([item.chat for item in items if item.ideal])
    return Answered(np.array(right), nats, known)


def groups(name: str, items: Sequence[Item]) -> dict[str, list[int]]:
    """The row numbers of all prompts of an evaluation, and of each language with enough prompts."""
    of = by_language([item.language for item in items])
    return {name: list(range(len(items)))} | {f"{name} ({language})": rows for language, rows in of.items()}


def compared(old: Answered, new: Answered, level: float) -> dict[str, Any]:
    """NEW compared with OLD on the same prompts.

    `nats` is the paired difference NEW - OLD (a `PairedTest`), or None where fewer than `FEWEST` prompts have an ideal answer.
    `lost_p` is the probability that so many right answers are lost by chance. `worse` says whether NEW is worse beyond noise.
    """
    lost, test = mcnemar(list(old.right), list(new.right)), None
    if new.known.sum() >= FEWEST:
        test = paired_test(list((new.nats - old.nats)[new.known]), level)
    worse = lost < (1 - level) / 2 or (test is not None and test.worse)
    return {"nats": asdict(test) if test is not None else None, "lost_p": lost, "worse": worse}


def evaluate(model: Path, asked: EvaluateOptions, against: Path | None = None) -> dict[str, dict[str, Any]]:
    """The shares of right answers by the name of each file, without prompts in the training data; `against` adds `compared`.

    The training data is `asked.corpus`, or that of the generation where none is given. Raises TenfoldError where too few prompts
    are left.
    """
    own = model / "data" / "train.jsonl"
    source = asked.corpus or (own if own.exists() else None)
    train = [chat for row in read_judgements(source) for chat in (row.liked, row.disliked) if chat is not None] if source else []
    models = [Model(model_path(path)) for path in (model, against) if path is not None and asked.data]
    found = {}
    for name, items in read_evaluations(asked.data, asked.checkers).items():
        dirty = learned([item.chat for item in items], train)
        kept = [item for item, was_learned in zip(items, dirty, strict=True) if not was_learned]
        if len(kept) < FEWEST:
            raise TenfoldError(
                f"{sum(dirty)} of {len(items)} prompts of {name} are in the training data: too few are left to evaluate."
            )
        results = [answered(one, kept) for one in models]
        languages = by_language([item.language for item in kept])
        of = {language: _report([result.of(rows) for result in results]) for language, rows in languages.items()}
        found[name] = {"learned": sum(dirty), **_report(results), "languages": of}
    return found


def _report(results: Sequence[Answered]) -> dict[str, Any]:
    """The shares of the first result; where there is a second one, `compared` with it."""
    return results[0].shares | ({"against": compared(results[1], results[0], 0.95)} if len(results) > 1 else {})
