"""Options that say how text is read, filtered and deduplicated."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, structs

from tenfold.spec.ranges import Text


class ReadOptions(Struct, frozen=True):
    """How text is read, and which quality rules it must pass."""

    text_column: Annotated[Text, Meta(description="The column with the text, in JSON, CSV, Parquet and Arrow files.")] = "text"
    html: Annotated[
        Literal["skip", "text", "source"], Meta(description="HTML: leave it out, extract its text, or keep its source (and XML's).")
    ] = "skip"
    markdown: Annotated[Literal["source", "text"], Meta(description="Markdown: keep the source, or extract its text.")] = "source"
    filters: Annotated[
        Text,
        Meta(description="Quality rules, with commas between: short, long-lines, few-letters, repetitive, broken; or all, none."),
    ] = "all"

    @property
    def recipe(self) -> dict[str, Any]:
        """The options as a corpus's manifest records them: the column, and those that differ from their default."""
        default = structs.asdict(type(self)())
        return {key: value for key, value in structs.asdict(self).items() if key == "text_column" or value != default[key]}


class TextOptions(ReadOptions, frozen=True):
    """How text is read, filtered and deduplicated."""

    dedup: Annotated[
        Literal["near", "exact", "none"], Meta(description="Copies to leave out: near ones (exact ones too), exact ones, or none.")
    ] = "near"
