"""The rooms' commands, found by their entry points `tenfold.commands` and loaded when they are used."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from tenfold.cli.options import as_command
from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.plugins import load, plugins


class Commands(TyperGroup):
    """The commands whose entry points begin with `prefix`: `plan.compare` is `tenfold plan compare`.

    Where `plan` and `plan.make` name the same function, `make` is the default verb: `tenfold plan` is `tenfold plan make`.
    """

    prefix = ""

    @property
    def default(self) -> str | None:
        """The default verb."""
        found, own = plugins("commands"), self.prefix.rstrip(".")
        same = (
            verb for verb in self.verbs() if own in found and found.get(self.prefix + verb, found[own]).value == found[own].value
        )
        return next(same, None)

    def verbs(self) -> list[str]:
        names = (name.removeprefix(self.prefix) for name in plugins("commands") if name.startswith(self.prefix))
        return list(dict.fromkeys(name.split(".")[0] for name in names))

    def list_commands(self, ctx: Any) -> list[str]:
        return self.verbs()

    def get_command(self, ctx: Any, name: str) -> Any:
        if name not in self.verbs():
            known = nearest(name, self.verbs())
            raise TenfoldError(f"There is no command `tenfold {self.prefix.replace('.', ' ')}{name}`{known}: see `tenfold --help`.")
        entry = self.prefix + name
        if any(other.startswith(f"{entry}.") for other in plugins("commands")):
            return _group(entry)
        command = _command(entry)
        if name == self.default:
            others = ", ".join(f"tenfold {self.prefix.rstrip('.')} {verb}" for verb in self.verbs() if verb != name)
            command.epilog = f"See also: {others}."
        return command

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if self.default and (not args or args[0] not in self.verbs()):
            args = [self.default, *(args or ["--help"])]
        return super().parse_args(ctx, args)


def _command(entry: str) -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    function = load("commands", entry)
    # Options may be written with underscores, as structs and run files do: --seq_len.
    app.command(entry.split(".")[-1], context_settings={"token_normalize_func": _with_hyphens})(as_command(function))
    return typer.main.get_command(app)


def _group(entry: str) -> Any:
    first = next(point for name, point in plugins("commands").items() if name == entry or name.startswith(f"{entry}."))
    load("commands", first.name)
    app = typer.Typer(cls=Commands, name=entry, rich_markup_mode="rich", no_args_is_help=True)
    app.callback(help=sys.modules[first.module].__doc__)(lambda: None)
    group = typer.main.get_command(app)
    assert isinstance(group, Commands)
    group.prefix = f"{entry}."
    return group


def _with_hyphens(name: str) -> str:
    return name.replace("_", "-")
