"""One command per room, thin. Each room's commands stand in a module of its name; rooms are imported where used."""

import json
import os
import sys
from typing import Annotated, Any

import typer

from tenfold.spec.errors import TenfoldError

app = typer.Typer(
    name="tenfold",
    help="Forecast, plan, train, serve and improve the next generation of a language model at ten times the compute.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the stack trace of an error.")] = False,
) -> None:
    if debug:
        os.environ["TENFOLD_DEBUG"] = "1"


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value, indent=2, default=str))


def main() -> None:
    """The command line: errors meant for people are one sentence on standard error, exit status 1."""
    from tenfold.spec.threads import set_waiting_policy

    set_waiting_policy()  # before any command loads PyTorch

    from tenfold.cli import commands  # noqa: F401

    try:
        app()
    except TenfoldError as error:
        if os.environ.get("TENFOLD_DEBUG"):
            raise
        print(f"tenfold: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("tenfold: stopped.", file=sys.stderr)
        sys.exit(130)
