"""How text is read and what of it is kept."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, structs

from tenfold.spec.ranges import Text


class ReadOptions(Struct, frozen=True):
    """How text is read, and which rules of quality it must pass."""

    text_column: Annotated[Text, Meta(description="The column that holds the text, of files with rows.")] = "text"
    html: Annotated[
        Literal["skip", "text", "source"], Meta(description="HTML: leave it out, read its text, or take it as it stands (and XML).")
    ] = "skip"
    markdown: Annotated[Literal["source", "text"], Meta(description="Markdown: take it as it stands, or read its text.")] = "source"
    filters: Annotated[
        Text,
        Meta(description="Rules by name, with commas between: short, long-lines, few-letters, repetitive, broken; all or none."),
    ] = "all"

    @property
    def recipe(self) -> dict[str, Any]:
        """What is written of them beside a corpus: the column, and what is not at its default."""
        default = structs.asdict(type(self)())
        return {key: value for key, value in structs.asdict(self).items() if key == "text_column" or value != default[key]}


class TextOptions(ReadOptions, frozen=True):
    """How text is read and what of it is kept."""

    dedup: Annotated[Literal["near", "exact", "none"], Meta(description="Which copies are left out.")] = "near"
