"""JSON as its standard has it: it knows no NaN and no infinity, so a number that is not finite is null."""

import json
import math
from typing import Any


def strict_json(value: Any, indent: int | None = None) -> str:
    """`value` as JSON; what JSON has no form for, such as a path, is written as text."""
    return json.dumps(finite(value), indent=indent, default=str, allow_nan=False)


def finite(value: Any) -> Any:
    """`value` with None in place of every number within it that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value
