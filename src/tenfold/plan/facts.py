"""The planner's data files, in which each figure has its source."""

import tomllib
from functools import cache
from importlib import resources
from typing import Any


@cache
def facts(name: str) -> dict[str, Any]:
    """The content of `plan/data/NAME.toml`."""
    return tomllib.loads(resources.files("tenfold.plan").joinpath(f"data/{name}.toml").read_text())
