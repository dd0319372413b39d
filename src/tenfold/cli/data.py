"""`tenfold data`: make a corpus, and look at one."""

from pathlib import Path
from typing import Annotated

import typer

from tenfold.cli import AsJson, app, print_json

data_app = typer.Typer(help="Prepare text: clean, find copies, tokenize.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command("build")
def build(
    source: Annotated[str, typer.Argument(help="A folder or file of text, or stdlib, torch-headers, docstrings.")],
    out: Annotated[Path, typer.Option(help="Where the corpus is written.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens in the vocabulary.")] = 2048,
    text_column: Annotated[str, typer.Option(help="The column of jsonl and Parquet files that holds the text.")] = "text",
    tokenizer_from: Annotated[Path | None, typer.Option(help="Take the tokenizer of this corpus, to mix the two.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a corpus: clean documents, a tokenizer, memory-mapped tokens.

    Example: tenfold data build ~/texts --out corpora/texts --vocab-size 8192
    """
    from tenfold.data.text.corpus import build as build_corpus

    build_corpus(source, out, vocab_size=vocab_size, text_column=text_column, tokenizer_from=tokenizer_from, quiet=as_json)
    show(out, as_json=as_json)


@data_app.command("clean")
def clean(
    source: Annotated[Path, typer.Argument(help="A folder of files of text, on all nodes alike.")],
    out: Annotated[Path, typer.Option(help="Where stages and result are kept; the clean text comes to OUT/clean.")],
    on: Annotated[str, typer.Option(help="local, slurm or ray.")] = "local",
    tasks: Annotated[int, typer.Option(help="Tasks that a stage is cut into.")] = 1,
    text_column: Annotated[str, typer.Option(help="The column of jsonl and Parquet files that holds the text.")] = "text",
    partition: Annotated[str, typer.Option(help="Slurm's partition.")] = "",
    limit: Annotated[str, typer.Option(help="Slurm's time limit of a stage.")] = "24:00:00",
) -> None:
    """Clean and deduplicate text that is too much for one machine, before `tenfold data build OUT/clean`.

    Example: tenfold data clean /shared/web --out /shared/web-clean --on slurm --tasks 2000 --partition cpu
    """
    from tenfold.data.text.big import clean_big

    clean_big(source, out, on=on, tasks=tasks, text_column=text_column, partition=partition, limit=limit)
    print(f"The clean text comes to {out / 'clean'}." if on == "slurm" else f"The clean text is in {out / 'clean'}.")


@data_app.command("upload")
def upload(
    directory: Annotated[Path, typer.Argument(help="A corpus.")],
    address: Annotated[str, typer.Argument(help="Where it goes: s3://bucket/folder, gs://..., or any that fsspec knows.")],
) -> None:
    """Copy a corpus to an object store; a run reads it from there with `corpus = "s3://bucket/folder"`.

    Example: tenfold data upload corpora/texts s3://bucket/texts
    """
    from tenfold.data.text.remote import upload as upload_corpus

    upload_corpus(directory, address)
    print(f"{directory} is at {address}.")


@data_app.command("show")
def show(
    directory: Annotated[Path, typer.Argument(help="A corpus.")],
    verify: Annotated[bool, typer.Option(help="Check every checksum.")] = False,
    examples: Annotated[int, typer.Option(help="Print so many validation documents.")] = 0,
    as_json: AsJson = False,
) -> None:
    """What a corpus holds, and what was left out of it and why.

    Example: tenfold data show generations/corpus-stdlib-2048 --verify --examples 2
    """
    from rich.console import Console
    from rich.table import Table

    from tenfold.data.text.corpus import open_corpus
    from tenfold.spec.units import si

    corpus = open_corpus(directory, verify=verify)
    manifest = corpus.manifest
    if as_json:
        print_json(manifest)
        return
    console = Console()
    for name, split in manifest["splits"].items():
        console.print(f"{name}: {split['documents']} documents, {si(split['bytes'], 'B')}, {si(split['tokens'], 'tokens')}")
    console.print(f"tokenized at {manifest['tokenize_mb_per_s']:.1f} MB/s, made in {manifest['seconds']:.0f} s")
    table = Table("left out", "documents", "bytes", "for example")
    for reason, entry in manifest["cleaning"]["dropped"].items():
        table.add_row(reason, str(entry["documents"]), si(entry["bytes"], "B"), entry["example"])
    console.print(table)
    for number in range(min(examples, manifest["splits"]["validation"]["documents"])):
        console.rule(f"validation document {number}")
        console.print(corpus.text("validation", number), markup=False, highlight=False)
