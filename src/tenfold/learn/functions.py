"""Functions of a user's Python file that reward or check answers; whatever they raise becomes a TenfoldError of one sentence."""

import inspect
import runpy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenfold.spec.errors import TenfoldError


def read_functions(source: str, kind: str) -> dict[str, Callable[..., Any]]:
    """The functions of a file whose names begin with `kind`. Raises TenfoldError where it has none, or cannot be run."""
    defined = run_file(source, kind).items()
    found: dict[str, Callable[..., Any]] = {name: f for name, f in defined if name.startswith(kind) and inspect.isfunction(f)}
    if not found:
        raise TenfoldError(f"{source} has no {kind}s: write a function whose name begins with {kind}.")
    return found


def run_file(source: str, kind: str) -> dict[str, Any]:
    """The global names that a Python file defines; `kind` is used in messages. Raises TenfoldError where it is missing or fails."""
    if not Path(source).is_file():
        raise TenfoldError(f"There is no file of {kind}s {source}.")
    with told(source, "cannot be run"):
        return runpy.run_path(source)


@contextmanager
def told(what: str, how: str = "failed") -> Iterator[None]:
    """Turn whatever a user's code raises in the block into a TenfoldError that names `what`."""
    try:
        yield
    except Exception as error:
        raise TenfoldError(f"{what} {how}: {type(error).__name__}: {error}.") from error


def taken(function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments `given` that the signature of `function` takes."""
    wanted = inspect.signature(function).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in wanted)
    return given if takes_all else {p.name: given[p.name] for p in wanted if p.name in given}
