"""What all commands share. A command is a function that an entry point in the group `tenfold.commands` refers to.

Its positional-only parameters become arguments and its keyword-only parameters options; a parameter whose type is a struct gives
one option for each field. Their help is the `msgspec.Meta(description=...)` of the annotation. The docstring is the help of the
command and ends in examples.
"""

from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from msgspec import Meta

from tenfold.spec.strict_json import strict_json

Struct = TypeVar("Struct")


class Given(dict[str, Any], Generic[Struct]):
    """Only those fields of `Struct` that the user gave on the command line, to override the values in a file.

    A field of a nested table is an option with a dot (`--optimizer.learning-rate`) and is in a nested dict.
    """


# Paths that need not exist; if one exists, it must be a file or a folder, respectively.
File = Annotated[Path, Meta(extra={"kind": "file"})]
Folder = Annotated[Path, Meta(extra={"kind": "folder"})]
Json = Annotated[bool, Meta(description="Print one JSON object instead of text.")]
Home = Annotated[Folder, Meta(description="The folder in which the generations are kept.")]


def print_json(value: Any) -> None:
    """Print a value as one JSON object on standard output."""
    print(strict_json(value, indent=2))
