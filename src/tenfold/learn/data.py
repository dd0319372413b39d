"""What a generation is tuned and judged on: three parts that share no user, or no prompt where no user is known.

train.jsonl         learned
validation.jsonl    seen between steps, and what the gate's forecast is made from
held_out.jsonl      the gate's own
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tenfold.data.conversations.chats import Chat, prompt_of, read_chats
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import whole_folder, write_json, write_text

VERSION = 1  # of the files of this room
PARTS = ("train", "validation", "held_out")


def parts_of(source: str, folder: Path, share: float) -> dict[str, Path]:
    """The three parts of `source` in `folder`, made once: JSON lines of chats, a feedback database, or its SQLite file.

    `share` of the users, or prompts, is held out, and as many are for validation. Raises TenfoldError where a part is empty.
    """
    files = {part: folder / f"{part}.jsonl" for part in PARTS}
    if folder.exists():
        return files
    rows = _by_prompt(read_chats(Path(source)), share) if source.endswith(".jsonl") else _by_user(source, share)
    for part in PARTS:
        if not rows[part]:
            raise TenfoldError(f"{source} leaves no chats for {part}: gather more, from more users.")
    with whole_folder(folder) as scratch:
        for part in PARTS:
            write_text(scratch / f"{part}.jsonl", "".join(f"{row}\n" for row in sorted(rows[part])))  # whoever spoke first
    return files


def _by_prompt(chats: list[Chat], share: float) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {part: [] for part in PARTS}
    for chat in chats:
        digest = hashlib.sha256(json.dumps(prompt_of(chat), sort_keys=True).encode()).digest()
        place = int.from_bytes(digest[:4]) / 2**32
        part = "held_out" if place < share else "validation" if place < 2 * share else "train"
        rows[part].append(json.dumps({"messages": chat}, ensure_ascii=False))
    return rows


def _by_user(database: str, share: float) -> dict[str, list[str]]:
    """Thumbs up and corrections: a user's are in one part. The smaller of two test shares holds users of the larger alone."""
    from tenfold.serve.feedback.export import export
    from tenfold.serve.feedback.feedback import Feedback

    if "://" not in database and not Path(database).exists():
        raise TenfoldError(f"There is no feedback in {database}: give JSON lines of chats, a feedback database, or its file.")
    feedback = Feedback(database if "://" in database else f"sqlite:///{database}")
    found = []
    for test_share in (2 * share, share):
        with TemporaryDirectory() as folder:
            rows = Path(folder) / "rows.jsonl"
            export(feedback, "sft", rows, test_share=test_share)
            found.append([file.read_text().splitlines() for file in (rows, rows.with_suffix(".test.jsonl"))])
    (train, others), (_, held_out) = found
    return {"train": train, "validation": [row for row in others if row not in set(held_out)], "held_out": held_out}


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write_versioned(path: Path, values: Mapping[str, Any]) -> None:
    write_json(path, {"version": VERSION, **values})
