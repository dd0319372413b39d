"""A room imports only rooms below it, plans need no PyTorch, files do not import one another in circles, and functions stay small."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOMS = ["spec", "model", "data", "launch", "train", "scale", "plan", "serve", "learn", "rank", "fleet", "console", "circle", "cli"]
PACKAGE = Path(__file__).parents[1] / "src" / "tenfold"
FILES = {
    ".".join(("tenfold", *p.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): p for p in PACKAGE.rglob("*.py")
}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
LONG, MANY = 60, 6  # lines and parameters of a function
LONG_FUNCTIONS, FUNCTIONS_OF_MANY = 3, 15  # how many may have more


def imported(tree: ast.AST, *, in_functions: bool) -> set[str]:
    """The modules that a file imports, also for type checking; `from a import b` gives both `a` and `a.b`."""
    names = set()
    for node in _nodes(tree, in_functions):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the whole path"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _nodes(tree: ast.AST, in_functions: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        yield node
        if in_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _nodes(node, in_functions)


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Names that import one another in a circle, or nothing."""
    try:
        TopologicalSorter({name: (others & imports.keys()) - {name} for name, others in imports.items()}).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_a_room_imports_only_rooms_below_it():
    for name, tree in TREES.items():
        room = name.split(".")[1] if name.count(".") > 1 else "cli"
        rooms = {other.split(".")[1] for other in imported(tree, in_functions=True) if other.startswith("tenfold.")}
        assert not rooms & set(ROOMS[ROOMS.index(room) + 1 :]), name


@pytest.mark.parametrize("room", ["spec", "plan"])
def test_no_torch_where_plans_are_made(room):
    for name, tree in TREES.items():
        if name.split(".")[1:2] == [room]:
            assert not any(other.split(".")[0] == "torch" for other in imported(tree, in_functions=True)), name


def test_no_room_is_missing_from_the_order():
    assert {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"} <= set(ROOMS)


def test_no_files_import_one_another_in_a_circle():
    assert circle({name: imported(tree, in_functions=False) for name, tree in TREES.items()}) == []


def test_a_circle_is_found_also_where_it_is_for_type_checking_alone():
    a = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from t import b\n"
    for b, found in (("import t.a", True), ("class B:\n    from t.a import A", True), ("def f():\n    import t.a", False)):
        trees = {"t.a": ast.parse(a), "t.b": ast.parse(b)}
        assert bool(circle({name: imported(tree, in_functions=False) for name, tree in trees.items()})) is found


def test_functions_are_short_and_take_few_parameters():
    long, many = [], []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                a = node.args
                parameters = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs) if p.arg not in ("self", "cls")]
                long += [f"{name}.{node.name}"] if node.end_lineno - node.lineno + 1 > LONG else []
                many += [f"{name}.{node.name}"] if len(parameters) > MANY else []
    assert len(long) <= LONG_FUNCTIONS, long
    assert len(many) <= FUNCTIONS_OF_MANY, many
