"""A room imports only rooms below it; plan and spec never import torch."""

import ast
from pathlib import Path

import pytest

ROOMS = ["spec", "model", "data", "launch", "train", "scale", "plan", "serve", "rank", "learn", "fleet", "console", "circle", "cli"]
PACKAGE = Path(__file__).parents[1] / "src" / "tenfold"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below_it(path):
    room = path.relative_to(PACKAGE).parts[0]
    rooms = {name.split(".")[1] for name in imported(path) if name.startswith("tenfold.")}
    assert all(ROOMS.index(other) <= ROOMS.index(room) for other in rooms), rooms


@pytest.mark.parametrize("room", ["spec", "plan"])
def test_no_torch_where_plans_are_made(room):
    for path in (PACKAGE / room).rglob("*.py"):
        assert not any(name.split(".")[0] == "torch" for name in imported(path)), path


def test_no_room_is_missing_from_the_order():
    assert {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"} <= set(ROOMS)
