"""The command line: finds the rooms' commands, runs one, and prints errors in one sentence."""

import os
import sys
from typing import Annotated

import typer

from tenfold.cli.commands import Commands
from tenfold.spec.errors import TenfoldError, nearest

app = typer.Typer(
    cls=Commands,
    name="tenfold",
    help="Forecast, plan, train, serve and improve the next generation of a language model at ten times the compute.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the stack trace of an error.")] = False,
) -> None:
    if debug:
        os.environ["TENFOLD_DEBUG"] = "1"


def main() -> None:
    """Run `tenfold`. An error meant for people is one sentence on standard error; its exit status is 1, or 2 for wrong usage."""
    try:
        sys.exit(app(prog_name="tenfold", standalone_mode=False))
    except (KeyboardInterrupt, typer.Abort):
        print("tenfold: stopped.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("TENFOLD_DEBUG") or not (isinstance(error, TenfoldError) or hasattr(error, "format_message")):
            raise
        print(f"tenfold: {_sentence(error)}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


def _sentence(error: Exception) -> str:
    """The sentence of an error of Tenfold, or of typer about wrong usage."""
    if isinstance(error, TenfoldError):
        return str(error)
    context, unknown = getattr(error, "ctx", None), getattr(error, "option_name", None)
    if context is None or unknown is None or getattr(error, "possibilities", None) is None:
        return f"{getattr(error, 'message', error)}"
    known = [flag for parameter in context.command.params for flag in (*parameter.opts, *parameter.secondary_opts)]
    return f"`{context.command_path}` has no option {unknown}{nearest(unknown, known)}."
