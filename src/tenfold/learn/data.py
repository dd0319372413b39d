"""The data of a tuned generation, in three parts that share no user, or no prompt where the users are not known.

train.jsonl         training rows
validation.jsonl    rows of the evaluations during training, from which the gate's forecast is made, too
held_out.jsonl      rows that the gate alone reads
people.json         the source of the rows and their users, what was left out or scrubbed, and which data sets and models still
                    hold rows of deleted users
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tenfold.data.conversations.chats import Chat, prompt_of, read_chats
from tenfold.data.conversations.preferences import read_preferences, read_rated
from tenfold.data.conversations.rows import read_rows
from tenfold.learn.lineage import VERSION, holders
from tenfold.learn.options import Kind
from tenfold.learn.personal import scrub
from tenfold.spec.errors import TenfoldError, without_secrets
from tenfold.spec.files import atomic_folder, file_sha256, write_json, write_text
from tenfold.spec.versions import read_document

if TYPE_CHECKING:
    from tenfold.serve.feedback.feedback import Feedback

PARTS = ("train", "validation", "held_out")


def parts_of(source: str, folder: Path, share: float, kind: Kind = "sft") -> dict[str, Path]:
    """The files of the three parts of `source` in `folder`; they are written by the first call only.

    `source` is a file of rows, the URL of a feedback database, or its SQLite file. `share` of the users (or prompts) is held out,
    and as many are for validation. Raises TenfoldError where a part is empty, or `folder` was made of another source.
    """
    files = {part: folder / f"{part}.jsonl" for part in PARTS}
    made_of = _made_of(source, share, kind)
    if folder.exists():
        if read_people(folder).get("made_of", made_of) != made_of:
            raise TenfoldError(f"{folder} was made of other rows or shares than {source}: give the new generation another --name.")
        return files
    rows, people = gathered(source, folder.parent.parent, share, kind)
    for part in PARTS:
        if not rows[part]:
            said = f" (left out: {left_out(people)})" if people.get("left_out") else ""
            raise TenfoldError(f"{source} leaves no chats for {part}{said}: gather more, from more users.")
    with atomic_folder(folder) as scratch:
        write_versioned(scratch / "people.json", {"made_of": made_of, **people})
        for part in PARTS:  # sorted, so that the order does not depend on when people wrote
            write_text(scratch / f"{part}.jsonl", "".join(f"{row}\n" for row in sorted(rows[part])))
    return files


def gathered(source: str, home: Path, share: float, kind: Kind = "sft") -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The rows of each part that `source` gives now, and the content of `people.json`. Writes nothing; a part may be empty.

    `home` has the generations whose data sets may hold rows of deleted users. Raises TenfoldError where `source` cannot be read.
    """
    people: dict[str, Any] = {}
    if is_file_of_rows(source):
        rows = _by_prompt(Path(source), share, kind)
    else:
        rows, people = _by_user(source, home, share, kind)
    return rows, people | _clean(rows)


def read_people(folder: Path) -> dict[str, Any]:
    """The content of `people.json`; empty where there is none, because the parts were written by hand."""
    file = folder / "people.json"
    return read_document(file, VERSION, f"delete {folder}, and tune again") if file.exists() else {}


def left_out(people: Mapping[str, Any]) -> str:
    """How many judgements of the source are in no part, with the reasons, as text."""
    return ", ".join(f"{count} {reason}" for reason, count in people.get("left_out", {}).items()) or "none"


def _made_of(source: str, share: float, kind: Kind) -> dict[str, Any]:
    """All that the content of the parts depends on."""
    return {**content_of(source), "held_out": share, "kind": kind}


def content_of(source: str) -> dict[str, str]:
    """What identifies the source: the hash of a file, or the name of a database.

    The content of a database is no part of it: judgements that come meanwhile are for the next generation.
    """
    if not is_file_of_rows(source):
        return {"database": without_secrets(source.rpartition("/")[2])}
    return {"content": file_sha256(Path(source)) if Path(source).is_file() else ""}


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
    """Open a feedback database by its URL or SQLite file. Raises TenfoldError where there is none."""
    from tenfold.serve.feedback.feedback import Feedback

    if "://" not in database and not Path(database).exists():
        raise TenfoldError(f"There is no feedback in {database}: give a file of rows, a feedback database, or its file.")
    return Feedback(database, create=False)


def _by_user(database: str, home: Path, share: float, kind: Kind) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The rows of each part, and their users. Each user is in one part.

    The data is exported twice, with test shares of 2 x `share` and `share`. The test users of the smaller share are among those of
    the larger: they are held out, and the others of the larger are for validation.
    """
    from tenfold.serve.feedback.export import export

    feedback, found, users = open_feedback(database), [], []
    for test_share in (2 * share, share):
        with TemporaryDirectory() as folder:
            rows = Path(folder) / "rows.jsonl"
            exported = export(feedback, kind, rows, test_share=test_share)
            users.append(exported.users)
            found.append([file.read_text().splitlines() for file in (rows, rows.with_suffix(".test.jsonl"))])
    (train, others), (_, held_out) = found
    (learns, tests), (_, judges) = users
    whose = {"train": learns, "validation": tests - judges, "held_out": judges}
    rest = set(held_out)
    gone = holders(home, without_secrets(database), feedback.users())
    people: dict[str, Any] = {"users": {part: sorted(of) for part, of in whose.items()}, "deleted_users_still_in": gone}
    people["left_out"] = dict(exported.left_out.most_common())
    return {"train": train, "validation": [row for row in others if row not in rest], "held_out": held_out}, people


def _clean(rows: dict[str, list[str]]) -> dict[str, Any]:
    """Scrub personal data and leave out copies, in place. Returns the counts for `people.json`."""
    personal, copies = Counter[str](), 0
    for part in PARTS:
        scrubbed = [json.dumps(scrub(json.loads(row), personal), ensure_ascii=False) for row in rows[part]]
        known = {" ".join(row.casefold().split()): row for row in reversed(scrubbed)}  # the first of equal ones stays
        copies += len(scrubbed) - len(known)
        rows[part] = list(known.values())
    return {"rows": {part: len(rows[part]) for part in PARTS}, "copies": copies, "personal": dict(personal)}


@dataclass(frozen=True)
class Judgement:
    """A prompt, with the chat that ends in the liked answer and the one that ends in the disliked; one of them may be None."""

    prompt: Chat
    liked: Chat | None
    disliked: Chat | None


def read_judgements(path: Path) -> list[Judgement]:
    """The rows of a part, whose kind (preferences, ratings or chats) the first row tells. Raises TenfoldError for a bad row."""
    first = next((row for _, row in read_rows(path)), None)
    if first is None:
        raise TenfoldError(f"{path} has no rows: give a file of chats, preferences or rated answers.")
    if "chosen" in first:
        return [Judgement(pair.chosen[:-1], pair.chosen, pair.rejected) for pair in read_preferences(path)]
    if "label" in first:
        return [Judgement(one.chat[:-1], *((one.chat, None) if one.good else (None, one.chat))) for one in read_rated(path)]
    cut = [(prompt_of(chat), chat) for chat in read_chats(path)]
    return [Judgement(prompt, chat[: len(prompt) + 1], None) for prompt, chat in cut]


def write_versioned(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON document of this room, with its version."""
    write_json(path, {"version": VERSION, **values})
