"""The planner's data files, each figure with its source in the file."""

import tomllib
from functools import cache
from importlib import resources
from typing import Any


@cache
def facts(name: str) -> dict[str, Any]:
    """`plan/data/NAME.toml`."""
    return tomllib.loads(resources.files("tenfold.plan").joinpath(f"data/{name}.toml").read_text())
