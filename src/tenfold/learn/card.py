"""The model card of a generation (README.md), written from its lineage and the verdict of its gate."""

from pathlib import Path
from typing import Any

from tenfold.learn.data import left_out
from tenfold.learn.lineage import licence, read_lineage
from tenfold.spec.files import write_text


def write_card(generation: Path, judged: dict[str, Any]) -> None:
    """Write README.md with the front matter that Hugging Face reads; `judged` is the content of gate.json.

    The licence is that of the model that was tuned.
    """
    lineage = read_lineage(generation)
    people = lineage.get("people", {})
    begun = lineage["init_from"]["path"]
    rows = [f"| {check['name']} | {'passed' if check['passed'] else 'refused'} | {check['says']} |" for check in judged["checks"]]
    scrubbed = ", ".join(f"{count} of {kind}" for kind, count in sorted(people.get("personal", {}).items())) or "none"
    users = {part: len(of) for part, of in people.get("users", {}).items()}
    text = [
        "---", f"license: {licence(Path(begun))}", f"base_model: {begun}", "---", "",
        f"# {generation.name}", "",
        f"Tuned from `{begun}` (weights {lineage['init_from']['sha256'][:12]}) on `{lineage['source']}`.", "",
        f"The gate {'let it pass' if judged['passed'] else 'refused it'} beside `{judged['old']}`.", "",
        "| check | verdict | found |", "|---|---|---|", *rows, "",
        "## Data", "",
        *(f"- {part}: {count} rows, of {users.get(part, 'unknown')} users" for part, count in people.get("rows", {}).items()),
        f"- Left out: {left_out(people)}. Copies left out: {people.get('copies', 0)}. Personal data scrubbed: {scrubbed}.",
        f"- Users deleted since, whose rows earlier sets or models hold: {len(people.get('deleted_users_still_in', {}))}.", "",
    ]  # fmt: skip
    write_text(generation / "README.md", "\n".join(text))
