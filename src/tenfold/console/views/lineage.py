"""The lineage: from which data, feedback and earlier generations each model was made."""

from pathlib import Path

from msgspec import Struct

from tenfold.console.document import read_json


class Node(Struct):
    """A generation or a source of one; `kind` is `generation`, `data`, `feedback`, or `model` for a model from elsewhere."""

    name: str
    kind: str


class Edge(Struct):
    """`source` was used for `target` as its `what` (text, ladder, weights or data), by the record in `file`."""

    source: str
    target: str
    what: str
    file: str


class Lineage(Struct):
    """The graph of the lineage."""

    nodes: list[Node]
    edges: list[Edge]


def lineage(home: Path, generations: list[str]) -> Lineage:
    """The graph of these generations and their sources."""
    nodes, edges = {name: "generation" for name in generations}, []

    def add(source: str, kind: str, target: str, what: str, file: str) -> None:
        nodes.setdefault(source, kind)
        edges.append(Edge(source, target, what, f"{target}/{file}"))

    for name in generations:
        if (home / name / "climb.json").exists():
            climb = read_json(home / name / "climb.json")
            if corpus := climb.get("corpus"):
                add(_short(home, str(corpus)), "data", name, "text", "climb.json")
            if parent := climb.get("parent"):
                add(str(parent), "generation", name, "ladder", "climb.json")
        if (home / name / "lineage.json").exists():
            made = read_json(home / name / "lineage.json")
            if begun := _path(made.get("init_from")):
                model = _short(home, begun)
                add(model, "generation" if (home / model).is_dir() else "model", name, "weights", "lineage.json")
            if source := made.get("source"):
                add(_short(home, str(source)), "feedback", name, "data", "lineage.json")
    return Lineage([Node(name, kind) for name, kind in nodes.items()], edges)


def _path(named: object) -> str | None:
    """The path of the initial weights in a lineage: a string, or an object with `path`."""
    found = named.get("path") if isinstance(named, dict) else named
    return str(found) if found else None


def _short(home: Path, named: str) -> str:
    """A path relative to the home, without a final `model`; of a path outside the home its last two parts."""
    path = Path(named)
    try:
        path = path.resolve().relative_to(home.resolve())
    except ValueError:
        return "/".join(path.parts[-2:])
    return str(path.parent if path.name == "model" and len(path.parts) > 1 else path)
