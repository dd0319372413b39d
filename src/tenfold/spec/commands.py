"""What the commands of all rooms share. A command is a function that an entry point `tenfold.commands` names.

Its positional-only parameters are arguments, its keyword-only ones options, and the fields of a parameter whose type is a
struct are options each. The help stands in `msgspec.Meta(description=...)` of the annotation; the docstring ends in examples.
"""

from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from msgspec import Meta

from tenfold.spec.strict_json import strict_json

Struct = TypeVar("Struct")


class Given(dict[str, Any], Generic[Struct]):
    """The fields of `Struct` that the user gave on the command line, and no others; they override a file or other defaults.

    A field of a table within the struct is an option with a dot (`--optimizer.learning-rate`); the table is a dict in this dict.
    """


# Paths that need not exist; what exists there must be of this kind.
File = Annotated[Path, Meta(extra={"kind": "file"})]
Folder = Annotated[Path, Meta(extra={"kind": "folder"})]
Json = Annotated[bool, Meta(description="Print one JSON object instead of text.")]
Home = Annotated[Folder, Meta(description="Where the generations are kept.")]


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    print(strict_json(value, indent=2))
