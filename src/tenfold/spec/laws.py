"""The compute-optimal number of parameters and tokens: by published scaling laws, or by the law of an own climb (`law.json`)."""

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.versions import read_document, require_version

VERSION = 3  # of law files; those of version 1 have no table of optima
LLAMA3 = "llama3"
REACH = 1e3  # `own_law` trusts a law up to this many times the compute of its largest run


@dataclass(frozen=True)
class Optimum:
    """The compute-optimal parameters (active ones, with experts) and tokens, and the source of the law."""

    params: float
    tokens: float
    source: str


@cache
def facts() -> dict[str, Any]:
    """The content of `spec/data/laws.toml`: laws, training tokens of published models, the largest corpus, the batch."""
    return tomllib.loads(resources.files("tenfold.spec").joinpath("data/laws.toml").read_text())


def laws() -> list[str]:
    """The names of the published laws."""
    return [name for name, row in facts().items() if "tokens_exponent" in row or "alpha" in row]


def optimum(flops: float, law: str) -> Optimum:
    """The compute-optimal parameters and tokens for `flops`. `law` is the name of a published law or the path of a `law.json`.

    Raises TenfoldError if there is no such law.
    """
    if law.endswith(".json"):
        return _of_file(flops, Path(law))
    if law not in laws():
        raise TenfoldError(f"There is no law {law!r}{nearest(law, laws())}: name one of {', '.join(laws())}, or a law.json.")
    row = facts()[law]
    if "tokens_exponent" in row:
        tokens = row["tokens_coefficient"] * flops ** row["tokens_exponent"]
        return Optimum(flops / 6 / tokens, tokens, row["source"])
    alpha, beta = row["alpha"], row["beta"]
    g = (alpha * row["A"] / (beta * row["B"])) ** (1 / (alpha + beta))
    params = g * (flops / 6) ** (beta / (alpha + beta))
    return Optimum(params, flops / 6 / params, row["source"])


def own_law(home: Path, flops: float, family: str = "llama3") -> str | None:
    """The path of the newest law of `family` in `home` that may be used for `flops` (`REACH`); unreadable ones are skipped.

    None if there is none.
    """
    for path in sorted(home.glob("g*/law.json"), key=lambda p: (len(p.parent.name), p.parent.name), reverse=True):
        climb = path.with_name("climb.json")
        try:
            of = read_document(climb, 1, "climb again")["family"] if climb.exists() else family
            if of == family and flops <= REACH * read_law(path)["largest_flops"]:
                return str(path)
        except TenfoldError:
            continue
    return None


def read_law(path: Path) -> dict[str, Any]:
    """A law that `tenfold law fit` or a climb wrote. Raises TenfoldError if it is missing, damaged, or has no table of optima."""
    again = "write one with `tenfold law fit points.csv --out law.json`"
    if not path.exists():
        raise TenfoldError(f"There is no law at {path}: {again}.")
    try:
        law = dict(json.loads(path.read_text()))
        require_version(law.get("version", 1), (1, 2, VERSION), path, again)
        missing = next((name for name in ("optimum", "flops_per_nd", "largest_flops", "n_points") if name not in law), None)
    except (OSError, ValueError, TypeError) as error:
        raise TenfoldError(f"{path} is not a law: {again}.") from error
    if missing:
        raise TenfoldError(f"{path} is not a law, or one of an older version without {missing!r}: {again}.")
    return law


def _of_file(flops: float, path: Path) -> Optimum:
    law = read_law(path)
    params = between(law["optimum"], flops)
    stretch = flops / law["largest_flops"]
    warning = f", {stretch:.2g} times beyond its largest run" if stretch > 1 else ""
    return Optimum(params, flops / law["flops_per_nd"] / params, f"the law of {path}, {law['n_points']} runs{warning}")


def between(points: Sequence[Sequence[float]], x: float) -> float:
    """Interpolate between points (x, y), both positive, linearly in logarithms; beyond the ends the last segment is extended."""
    i = max(0, min(len(points) - 2, sum(x >= first for first, _ in points) - 1))
    (x0, y0), (x1, y1) = points[i], points[i + 1]
    return y0 * math.exp(math.log(x / x0) * math.log(y1 / y0) / math.log(x1 / x0))
