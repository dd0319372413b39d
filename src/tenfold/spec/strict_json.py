"""JSON as its standard defines it, without NaN and infinity: such numbers are written as null."""

import json
import math
from typing import Any


def strict_json(value: Any, indent: int | None = None) -> str:
    """`value` as JSON text; objects that JSON does not know, such as paths, are written as strings."""
    return json.dumps(finite(value), indent=indent, default=str, allow_nan=False)


def finite(value: Any) -> Any:
    """`value` with None in place of every number in it that is not finite; tuples become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value
