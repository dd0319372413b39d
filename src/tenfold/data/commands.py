"""Commands that prepare text: build, clean, show and upload corpora."""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, structs

from tenfold.data.text.options import ReadOptions, TextOptions
from tenfold.spec.commands import Folder, Json, print_json
from tenfold.spec.ranges import CountOrNone, Nodes, Text, VocabSize

Corpus = Annotated[Folder, Meta(description="The folder of a corpus.")]


class BuildOptions(Struct, frozen=True):
    """How a corpus is made."""

    vocab_size: Annotated[VocabSize, Meta(description="Tokens in the vocabulary, if a tokenizer is trained.")] = 2048
    tokenizer_from: Annotated[Path | None, Meta(description="Use the tokenizer of this corpus, model or GGUF file.")] = None


class CleanOptions(Struct, frozen=True):
    """Where text is cleaned, and in how many tasks."""

    on: Annotated[Literal["local", "slurm", "ray"], Meta(description="Where the tasks run.")] = "local"
    tasks: Annotated[Nodes, Meta(description="The number of tasks in each stage.")] = 1
    partition: Annotated[str, Meta(description="Slurm: the partition.")] = ""
    limit: Annotated[str, Meta(description="Slurm: the time limit of a stage, hours:minutes:seconds.")] = "24:00:00"


def build(
    source: Annotated[Text, Meta(description="A folder or file of text, or stdlib, torch-headers, docstrings.")],
    /,
    *,
    out: Annotated[Folder, Meta(description="Where the corpus is written.")],
    options: BuildOptions = BuildOptions(),
    text: TextOptions = TextOptions(),
    json: Json = False,
) -> None:
    """Make a corpus: clean and deduplicate documents, train or take a tokenizer, and write the tokens.

    Example: tenfold data build ~/texts --out corpora/texts --vocab-size 8192
    """
    from tenfold.data.text.corpus import build as build_corpus

    build_corpus(source, out, **structs.asdict(options), options=text, quiet=json)
    show(out, json=json)


def clean(
    source: Annotated[Folder, Meta(description="A folder of text files, at the same path on all nodes.")],
    /,
    *,
    out: Annotated[Folder, Meta(description="The folder for the stages and the result; the clean text is written to OUT/clean.")],
    options: CleanOptions = CleanOptions(),
    text: ReadOptions = ReadOptions(),
) -> None:
    """Clean and deduplicate text that is too large for one machine, before `tenfold data build OUT/clean`.

    Example: tenfold data clean /shared/web --out /shared/web-clean --on slurm --tasks 2000 --partition cpu
    """
    from tenfold.data.text.big import clean_big

    clean_big(source, out, **structs.asdict(options), options=text)
    print(f"The clean text {'will be' if options.on == 'slurm' else 'is'} in {out / 'clean'}.")


def upload(
    directory: Corpus,
    address: Annotated[Text, Meta(description="Its new address: s3://bucket/folder, gs://..., or any that fsspec knows.")],
    /,
) -> None:
    """Copy a corpus to an object store; a run reads it from there with `corpus = "s3://bucket/folder"`.

    Example: tenfold data upload corpora/texts s3://bucket/texts
    """
    from tenfold.data.text.remote import upload as upload_corpus

    upload_corpus(directory, address)
    print(f"{directory} is at {address}.")


def show(
    directory: Corpus,
    /,
    *,
    verify: Annotated[bool, Meta(description="Check the checksum of every file.")] = False,
    examples: Annotated[CountOrNone, Meta(description="Print this many validation documents.")] = 0,
    json: Json = False,
) -> None:
    """Show what a corpus holds, and what was left out of it and why.

    Example: tenfold data show generations/corpus-stdlib-2048 --verify --examples 2
    """
    from tenfold.data.text.corpus import open_corpus
    from tenfold.spec.terminal import Figures, console
    from tenfold.spec.units import si

    corpus = open_corpus(directory, verify=verify)
    manifest = corpus.manifest
    if json:
        print_json(manifest)
        return
    out = console()
    for name, split in manifest["splits"].items():
        out.print(f"{name}: {split['documents']} documents, {si(split['bytes'], 'B')}, {si(split['tokens'], 'tokens')}")
    out.print(f"tokenized at {manifest['tokenize_mb_per_s']:.1f} MB/s, made in {manifest['seconds']:.0f} s")
    table = Figures("left out", "documents", "bytes", "for example")
    for reason, entry in manifest["cleaning"]["dropped"].items():
        table.add_row(reason, str(entry["documents"]), si(entry["bytes"], "B"), entry["example"])
    out.print(table)
    for number in range(min(examples, manifest["splits"]["validation"]["documents"])):
        out.print(f"validation document {number}:")
        out.print(corpus.text("validation", number))
