"""Exports feedback as training rows, in TRL's conversational formats dpo, kto and sft.

The export leaves out answers that were cut off, ties, blind comparisons in which an answer names its model, repeated rows,
and rows of a user above a daily limit. All rows of a user go to either the training or the test file.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from sqlalchemy import Table

from tenfold.serve.feedback.database import Snapshot
from tenfold.serve.feedback.feedback import DAY, Feedback, corrections, pairs, ratings, responses
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import atomic_file

FORMATS = ("dpo", "kto", "sft")


@dataclass
class Exported:
    """Rows written to each file, the hashes of their users (train, test), and rows left out by reason."""

    train: int = 0
    test: int = 0
    users: tuple[set[str], set[str]] = field(default_factory=lambda: (set(), set()))
    left_out: Counter[str] = field(default_factory=Counter)


def export(feedback: Feedback, format: str, out: Path, *, test_share: float = 0.1, per_user_day: int = 200) -> Exported:
    """Write `out` and, beside it, NAME.test.jsonl.

    `test_share` of the users go to the test file; `per_user_day` is the most rows of a user in a day. Raises TenfoldError for a
    format that is not in FORMATS.
    """
    if format not in FORMATS:
        raise TenfoldError(f"There is no format {format!r}: ask for one of {', '.join(FORMATS)}.")
    made, seen, given = Exported(), set(), Counter[tuple[str, int]]()
    with feedback.snapshot() as kept, _whole(out) as train, _whole(out.with_suffix(".test.jsonl")) as test:
        answers = {row.id: row for row in kept.rows(responses)}
        for user, created, used, row in _ROWS[format](kept, answers, made.left_out):
            digest = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()
            given[user, int(created // DAY)] += 1
            if any(answer.finish_reason == "length" for answer in used):
                made.left_out["cut off"] += 1
            elif digest in seen:
                made.left_out["repeated"] += 1
            elif given[user, int(created // DAY)] > per_user_day:
                made.left_out["over the daily limit of a user"] += 1
            elif int(user[:8], 16) < test_share * 2**32:
                seen.add(digest)
                made.test += 1
                made.users[1].add(user)
                test.write(json.dumps(row, ensure_ascii=False) + "\n")
            else:
                seen.add(digest)
                made.train += 1
                made.users[0].add(user)
                train.write(json.dumps(row, ensure_ascii=False) + "\n")
    return made


@contextmanager
def _whole(path: Path) -> Iterator[TextIO]:
    with atomic_file(path) as scratch, scratch.open("w") as stream:
        yield stream


# Rows with the hash of their user, their time, and the stored answers whose text they contain.
_Found = Iterator[tuple[str, float, list[Any], dict[str, Any]]]


def _assistant(text: str) -> list[dict[str, str]]:
    """An answer as TRL's conversational formats have it."""
    return [{"role": "assistant", "content": text}]


def _latest(kept: Snapshot, table: Table) -> list[Any]:
    """Each user's latest judgement of each answer."""
    return list({(row.user_hash, row.response_id): row for row in kept.rows(table)}.values())


def _edits(kept: Snapshot, answers: dict[str, Any], left_out: Counter[str]) -> Iterator[tuple[Any, Any]]:
    """The latest corrections that differ from their answers, each with its answer."""
    for edit in _latest(kept, corrections):
        answer = answers[edit.response_id]
        if edit.text.strip() in ("", answer.text.strip()):
            left_out["nothing was corrected"] += 1
        else:
            yield edit, answer


def _dpo(kept: Snapshot, answers: dict[str, Any], left_out: Counter[str]) -> _Found:
    for pair in kept.rows(pairs):
        a, b = answers[pair.a_response_id], answers[pair.b_response_id]
        if pair.winner not in ("a", "b"):
            left_out["no winner"] += 1
        elif pair.blind and any(name.lower() in x.text.lower() for x in (a, b) for name in (a.model, b.model)):
            left_out["an answer names its model"] += 1
        elif a.text == b.text:
            left_out["equal answers"] += 1
        else:
            chosen, rejected = (a, b) if pair.winner == "a" else (b, a)
            row = {"prompt": a.messages, "chosen": _assistant(chosen.text), "rejected": _assistant(rejected.text)}
            yield pair.user_hash, pair.created, [a, b], row
    for edit, answer in _edits(kept, answers, left_out):
        row = {"prompt": answer.messages, "chosen": _assistant(edit.text), "rejected": _assistant(answer.text)}
        yield edit.user_hash, edit.created, [], row  # [], since the correction of a cut-off answer may be used
    yield from _siblings(kept, answers)


def _siblings(kept: Snapshot, answers: dict[str, Any]) -> _Found:
    """Pairs of answers to the same conversation, one with a thumb up and one with a thumb down of the same user."""
    groups: dict[tuple[str, str], list[Any]] = {}
    for rating in _latest(kept, ratings):
        key = rating.user_hash, json.dumps(answers[rating.response_id].messages, sort_keys=True)
        groups.setdefault(key, []).append(rating)
    for (user, _), given in groups.items():
        for up in (r for r in given if r.value > 0):
            for down in (r for r in given if r.value < 0):
                good, bad = answers[up.response_id], answers[down.response_id]
                if good.text != bad.text:
                    row = {"prompt": good.messages, "chosen": _assistant(good.text), "rejected": _assistant(bad.text)}
                    yield user, max(up.created, down.created), [good, bad], row


def _kto(kept: Snapshot, answers: dict[str, Any], left_out: Counter[str]) -> _Found:
    for rating in _latest(kept, ratings):
        answer = answers[rating.response_id]
        row = {"prompt": answer.messages, "completion": _assistant(answer.text), "label": rating.value > 0}
        yield rating.user_hash, rating.created, [answer], row


def _sft(kept: Snapshot, answers: dict[str, Any], left_out: Counter[str]) -> _Found:
    for edit, answer in _edits(kept, answers, left_out):
        yield edit.user_hash, edit.created, [], {"messages": answer.messages + _assistant(edit.text)}
    for rating in _latest(kept, ratings):
        answer = answers[rating.response_id]
        if rating.value > 0:
            yield rating.user_hash, rating.created, [answer], {"messages": answer.messages + _assistant(answer.text)}


_ROWS = {"dpo": _dpo, "kto": _kto, "sft": _sft}
