"""Which data, feedback and earlier generations made which model."""

from pathlib import Path

from msgspec import Struct

from tenfold.console.document import read_json

KINDS = ("generation", "data", "feedback", "model")


class Node(Struct):
    """A generation, or what one was made of: `data`, `feedback`, or a `model` from elsewhere."""

    name: str
    kind: str


class Edge(Struct):
    """`source` went into `target`, as `file` says."""

    source: str
    target: str
    what: str
    file: str


class Lineage(Struct):
    """The graph."""

    nodes: list[Node]
    edges: list[Edge]


def lineage(home: Path, generations: list[str]) -> Lineage:
    """The graph of these generations, and of what they were made of."""
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
    """The path in what a lineage says of weights: a text, or an object with one."""
    found = named.get("path") if isinstance(named, dict) else named
    return str(found) if found else None


def _short(home: Path, named: str) -> str:
    """A path within the home as it is there, without the model's folder; of others the last two parts."""
    path = Path(named)
    try:
        path = path.resolve().relative_to(home.resolve())
    except ValueError:
        return "/".join(path.parts[-2:])
    return str(path.parent if path.name == "model" and len(path.parts) > 1 else path)
