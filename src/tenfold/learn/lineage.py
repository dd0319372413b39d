"""The lineage of a generation: the weights that it was tuned from, its data, the users whose data it is, and the licence."""

from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from tenfold.spec.versions import read_document

VERSION = 1  # of the JSON files that this room writes
UNKNOWN = "unknown"


def read_lineage(generation: Path) -> dict[str, Any]:
    """The content of lineage.json. Raises TenfoldError where it is missing."""
    return read_document(generation / "lineage.json", VERSION, "tune the model with `tenfold learn sft`")


def holders(home: Path, source: str, present: set[str], ending: str = ".jsonl") -> dict[str, list[str]]:
    """The users of earlier data sets of `source` who are not `present` any more, with the files and models that hold their rows.

    A model holds the rows that it was trained on, and those of the model that it was tuned from. A part of a data set is called by
    its file, which has this `ending`; all parts but `validation` and `held_out` are training data.
    """
    lineages = {file.parent: read_lineage(file.parent) for file in sorted(home.glob("*/lineage.json"))}
    found: dict[str, list[str]] = {}
    for generation, lineage in lineages.items():
        if _place_of(lineage["source"]) != _place_of(source):
            continue
        for part, users in lineage.get("people", {}).get("users", {}).items():
            held = [f"{generation.name}/data/{part}{ending}"]
            if part not in ("validation", "held_out"):
                held += [f"{one.name}/model" for one in [generation, *_descendants(generation, lineages)]]
            for user in set(users) - present:
                found.setdefault(user, []).extend(held)
    return {user: sorted(set(held)) for user, held in sorted(found.items())}


def _place_of(source: str) -> str:
    """One name for a source that may be given in several ways: as a file, `./` before it, or the URL of an SQLite file."""
    path = source.removeprefix("sqlite:///")
    return path if "://" in path else str(Path(path).resolve())


def _descendants(generation: Path, lineages: dict[Path, dict[str, Any]]) -> list[Path]:
    """The generations that were tuned from `generation`, directly or through others."""
    begun = {Path(generation.resolve()), generation.resolve() / "model"}
    children = [one for one, lineage in lineages.items() if Path(lineage["init_from"]["path"]).resolve() in begun]
    return children + [below for child in children for below in _descendants(child, lineages)]


def licence(model: Path) -> str:
    """The licence of a model: from its card, from the Python package that contains it, or from the model that it was tuned from."""
    for folder in (model, model.parent):
        card = folder / "README.md"
        if card.is_file() and (stated := _stated(card)):
            return stated
        if (folder / "lineage.json").exists():
            return licence(Path(read_lineage(folder)["init_from"]["path"]))
    if "site-packages" in model.parts:
        try:
            package = metadata(model.parts[model.parts.index("site-packages") + 1])
        except PackageNotFoundError:
            return UNKNOWN
        fields = {key.lower(): package[key] for key in package}
        return fields.get("license-expression") or fields.get("license") or UNKNOWN
    return UNKNOWN


def _stated(card: Path) -> str:
    """The value of `license:` in the front matter of a model card; empty where it is missing or unknown."""
    lines = card.read_text(errors="replace").splitlines()
    head = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
    found = next((line.partition(":")[2].strip() for line in head if line.startswith("license:")), "")
    return "" if found == UNKNOWN else found
