"""Plugins: what other packages add to Tenfold by Python entry points in the groups `tenfold.GROUP`.

The built-in families, tasks, backends, launchers, policies, commands, routes and accelerators are registered in the same way (in
`pyproject.toml`), so another package can add to them, or replace one by using its name.
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from tenfold.spec.errors import TenfoldError, nearest

GROUPS = ("families", "tasks", "backends", "launchers", "policies", "commands", "routes", "accelerators")


@cache
def plugins(group: str) -> dict[str, EntryPoint]:
    """The entry points of `group`, one of `GROUPS`, by name. One of another package replaces a built-in one with the same name."""
    found = sorted(entry_points(group=f"tenfold.{group}"), key=lambda e: e.dist is None or e.dist.name != "tenfold")
    return {point.name: point for point in found}


@cache
def load(group: str, name: str) -> Any:
    """The object that the entry point `name` of `group` refers to. Raises TenfoldError if there is none, or if its import fails."""
    known = plugins(group)
    kind = {"families": "family", "policies": "policy"}.get(group, group.removesuffix("s"))
    if name not in known:
        raise TenfoldError(f"There is no {kind} {name!r}{nearest(name, known)}.")
    try:
        return known[name].load()
    except (ImportError, AttributeError) as error:
        raise TenfoldError(f"The {kind} {name!r} ({known[name].value}) cannot be loaded: {error}.") from error
