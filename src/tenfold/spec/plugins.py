"""Plugins: what a package adds to Tenfold by Python's entry points, under the groups `tenfold.GROUP`.

The built-in families, tasks, backends, launchers, policies, commands, routes and accelerators come in by the same door
(`pyproject.toml`), so that a package of one's own can stand beside them, or take the place of one of the same name.
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from tenfold.spec.errors import TenfoldError, nearest

GROUPS = ("families", "tasks", "backends", "launchers", "policies", "commands", "routes", "accelerators")


@cache
def plugins(group: str) -> dict[str, EntryPoint]:
    """The entry points of `group`, one of `GROUPS`, by name. Another package's takes the place of a built-in one of its name."""
    found = sorted(entry_points(group=f"tenfold.{group}"), key=lambda e: e.dist is None or e.dist.name != "tenfold")
    return {point.name: point for point in found}


@cache
def load(group: str, name: str) -> Any:
    """What the entry point `name` of `group` refers to. Raises TenfoldError where there is none, or where it does not load."""
    known = plugins(group)
    kind = {"families": "family", "policies": "policy"}.get(group, group.removesuffix("s"))
    if name not in known:
        raise TenfoldError(f"There is no {kind} {name!r}{nearest(name, known)}.")
    try:
        return known[name].load()
    except (ImportError, AttributeError) as error:
        raise TenfoldError(f"The {kind} {name!r} ({known[name].value}) cannot be loaded: {error}.") from error
