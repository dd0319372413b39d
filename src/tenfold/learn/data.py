"""What a generation is tuned and judged on: three parts that share no user, or no prompt where no user is known.

train.jsonl         learned
validation.jsonl    seen between steps, and what the gate's forecast is made from
held_out.jsonl      the gate's own
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tenfold.data.conversations.chats import Chat, prompt_of, read_chats
from tenfold.data.conversations.preferences import read_preferences, read_rated
from tenfold.learn.options import Kind
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import whole_folder, write_json, write_text

if TYPE_CHECKING:
    from tenfold.serve.feedback.feedback import Feedback

VERSION = 1  # of the files of this room
PARTS = ("train", "validation", "held_out")


def parts_of(source: str, folder: Path, share: float, kind: Kind = "sft") -> dict[str, Path]:
    """The three parts of `source` in `folder`, made once: a file of rows, a feedback database, or its SQLite file.

    `share` of the users, or prompts, is held out, and as many are for validation. Raises TenfoldError where a part is empty.
    """
    files = {part: folder / f"{part}.jsonl" for part in PARTS}
    if folder.exists():
        return files
    rows = _by_prompt(Path(source), share, kind) if is_file_of_rows(source) else _by_user(source, share, kind)
    for part in PARTS:
        if not rows[part]:
            raise TenfoldError(f"{source} leaves no chats for {part}: gather more, from more users.")
    with whole_folder(folder) as scratch:
        for part in PARTS:
            write_text(scratch / f"{part}.jsonl", "".join(f"{row}\n" for row in sorted(rows[part])))  # whoever spoke first
    return files


def is_file_of_rows(source: str) -> bool:
    """Whether `source` is a file of rows, not a database."""
    return "://" not in source and source.endswith((".jsonl", ".json", ".parquet"))


def _by_prompt(path: Path, share: float, kind: Kind) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {part: [] for part in PARTS}
    for prompt, row in _with_prompts(path, kind):
        digest = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).digest()
        place = int.from_bytes(digest[:4]) / 2**32
        part = "held_out" if place < share else "validation" if place < 2 * share else "train"
        rows[part].append(json.dumps(row, ensure_ascii=False))
    return rows


def _with_prompts(path: Path, kind: Kind) -> Iterator[tuple[Chat, dict[str, Any]]]:
    """Each row of a file in TRL's format, with its prompt."""
    if kind == "dpo":
        for pair in read_preferences(path):
            yield pair.chosen[:-1], {"prompt": pair.chosen[:-1], "chosen": pair.chosen[-1:], "rejected": pair.rejected[-1:]}
    elif kind == "kto":
        for rated in read_rated(path):
            yield rated.chat[:-1], {"prompt": rated.chat[:-1], "completion": rated.chat[-1:], "label": rated.good}
    else:
        for chat in read_chats(path):
            yield prompt_of(chat), {"messages": chat}


def open_feedback(database: str) -> "Feedback":
    """A feedback database, or the SQLite file of one. Raises TenfoldError where there is none."""
    from tenfold.serve.feedback.feedback import Feedback

    if "://" not in database and not Path(database).exists():
        raise TenfoldError(f"There is no feedback in {database}: give a file of rows, a feedback database, or its file.")
    return Feedback(database if "://" in database else f"sqlite:///{database}")


def _by_user(database: str, share: float, kind: Kind) -> dict[str, list[str]]:
    """What people said: a user's rows are in one part. The smaller of two test shares holds users of the larger alone."""
    from tenfold.serve.feedback.export import export

    feedback, found = open_feedback(database), []
    for test_share in (2 * share, share):
        with TemporaryDirectory() as folder:
            rows = Path(folder) / "rows.jsonl"
            export(feedback, kind, rows, test_share=test_share)
            found.append([file.read_text().splitlines() for file in (rows, rows.with_suffix(".test.jsonl"))])
    (train, others), (_, held_out) = found
    return {"train": train, "validation": [row for row in others if row not in set(held_out)], "held_out": held_out}


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write_versioned(path: Path, values: Mapping[str, Any]) -> None:
    write_json(path, {"version": VERSION, **values})
