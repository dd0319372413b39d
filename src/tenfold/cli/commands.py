"""Find a command among the entry points `tenfold.commands`, and run it. A command's module is imported only when it is used."""

import argparse
import inspect
import os
from importlib.metadata import version

from tenfold.cli.options import Formatter, Parser, UsageError, require_kinds
from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.plugins import load, plugins

ABOUT = "Forecast, plan, train, serve and improve the next generation of a language model at ten times the compute."


def run(arguments: list[str]) -> None:
    """Run the command that the arguments name; where they name a group of commands, print its help. Raises TenfoldError."""
    if arguments[:1] == ["--debug"]:
        os.environ["TENFOLD_DEBUG"] = "1"
        arguments = arguments[1:]
    if arguments == ["--version"]:
        print(f"tenfold {version('tenfold')}")
        return
    parser, rest = find(arguments)
    if parser is None:
        print(listing(rest), end="")
        return
    call = parser.call(rest)
    require_kinds(parser.options, call)
    parser.function(*call.args, **call.kwargs)


def find(arguments: list[str]) -> tuple[Parser | None, list[str]]:
    """The parser of the command that the first arguments name, and the remaining arguments; the entry point `plan.compare` is
    the command `tenfold plan compare`.

    Where the arguments name a group of commands: None, and the words that name the group. Raises UsageError where there is no
    such command.
    """
    known = plugins("commands")
    words: list[str] = []
    for word in arguments:
        if not verbs([*words, word]) and ".".join([*words, word]) not in known:
            break
        words.append(word)
    entry, rest = ".".join(words), _with_hyphens(arguments[len(words) :])
    if entry in known:
        others = [verb for verb in verbs(words) if known[f"{entry}.{verb}"].value != known[entry].value]
        return Parser(load("commands", entry), " ".join(["tenfold", *words]), others), rest
    if rest and rest[0] not in ("--help", "-h"):
        asked, at = " ".join(["tenfold", *words, rest[0]]), " ".join(["tenfold", *words])
        raise UsageError(f"There is no command `{asked}`{nearest(rest[0], verbs(words))}: see `{at} --help`.")
    return None, words


def verbs(words: list[str]) -> list[str]:
    """The words that may follow `words` in the name of a command."""
    names = [name.split(".") for name in plugins("commands")]
    return list(dict.fromkeys(name[len(words)] for name in names if name[: len(words)] == words and len(name) > len(words)))


def listing(words: list[str]) -> str:
    """The help of a group of commands: a line for each, with the first line of its docstring."""
    name = " ".join(["tenfold", *words])
    parser = argparse.ArgumentParser(
        name, f"{name} COMMAND [OPTIONS]", None if words else ABOUT, formatter_class=Formatter, add_help=False
    )
    if not words:
        parser.add_argument("--version", action="store_true", help="Print the version.")
        parser.add_argument("--debug", action="store_true", help="Show the stack trace of an error.")
    group = parser.add_argument_group("commands")
    for verb in verbs(words):
        group.add_argument(verb, help=_about([*words, verb]).replace("%", "%%"))
    return parser.format_help()


def _about(words: list[str]) -> str:
    """The first line of a command's docstring, or the commands of a group."""
    entry = ".".join(words)
    if entry not in plugins("commands"):
        return f"{', '.join(verbs(words))}: see `tenfold {' '.join(words)} --help`."
    try:
        return (inspect.getdoc(load("commands", entry)) or "").split("\n")[0]
    except TenfoldError as error:
        return str(error)


def _with_hyphens(arguments: list[str]) -> list[str]:
    """The arguments with hyphens in option names: options may also be written like the keys of run files, `--seq_len`."""
    split = (argument.partition("=") for argument in arguments)
    return [name.replace("_", "-") + sign + value if name.startswith("--") else name + sign + value for name, sign, value in split]
