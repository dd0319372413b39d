"""Turn a function into a command: its parameters become arguments and options.

A parameter whose type is a struct or a dataclass (a "table") gives one option for each of its fields.
"""

import argparse
import dataclasses
import functools
import inspect
import math
import operator
import tomllib
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from tenfold.spec.commands import Given
from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.files import reason
from tenfold.spec.ranges import alternatives, choices, is_table, shown, unusable, words
from tenfold.spec.units import parse_quantity

METAVARS = {str: "TEXT", int: "INT", float: "NUMBER", Path: "PATH", date: "DATE"}
UNSET = (inspect.Parameter.empty, dataclasses.MISSING, msgspec.NODEFAULT)


class UsageError(TenfoldError):
    """An unknown command or option, or a value that an option does not accept."""


class Option(NamedTuple):
    """An option, or, if `flag` is empty, a positional argument.

    `path` says where its value goes: the name of the parameter, then the names of the nested fields.
    """

    path: tuple[str, ...]
    flag: str
    type: Any
    default: Any
    partial: bool = False  # a field of a `Given` parameter: left out of the call if the user does not give it

    @property
    def name(self) -> str:
        """Its name in messages: `--seq-len`, or `CONFIG` for an argument."""
        return self.flag or self.path[-1].upper()

    @property
    def kinds(self) -> list[Any]:
        """The members of its type if that is a union, without None; else the type alone."""
        return alternatives(self.type)

    @property
    def choices(self) -> list[str]:
        """The words that it takes where its type is a `Literal`."""
        return choices(self.type)

    @property
    def item(self) -> Any:
        """The type of one value if the option may be given several times (its type is a list or a tuple), else None."""
        kind = self.kinds[0]
        return get_args(kind)[0] if get_origin(kind) in (list, tuple) and get_args(kind)[0] in METAVARS else None


def options_of(function: Callable[..., Any]) -> list[Option]:
    """The options of a command, in the order of its parameters."""
    hints = get_type_hints(function, include_extras=True)
    found: list[Option] = []
    for parameter in inspect.signature(function).parameters.values():
        kind = hints[parameter.name]
        if get_origin(kind) is Given:
            found += _fields((parameter.name,), "--", get_args(kind)[0], partial=True)
        elif is_table(kind):
            found += _fields((parameter.name,), "--", kind, defaults=parameter.default)
        else:
            positional = parameter.kind is inspect.Parameter.POSITIONAL_ONLY
            flag = "" if positional else f"--{parameter.name.replace('_', '-')}"
            found.append(Option((parameter.name,), flag, kind, parameter.default))
    return found


def _fields(path: tuple[str, ...], prefix: str, table: type, *, partial: bool = False, defaults: Any = None) -> Iterator[Option]:
    """The options of a table's fields. Their defaults are the values in the table `defaults`, if there is one."""
    hints = get_type_hints(table, include_extras=True)
    fields: Any = msgspec.structs.fields(table) if issubclass(table, msgspec.Struct) else dataclasses.fields(cast(Any, table))
    for field in fields:
        default = field.default_factory() if field.default_factory not in UNSET else field.default
        default = getattr(defaults, field.name, default)
        kind, here = hints[field.name], (*path, field.name)
        flag = meta(kind).get("flag", f"{prefix}{field.name.replace('_', '-')}")
        tables = [kind for kind in alternatives(kind) if is_table(kind)]
        for inner in tables:
            yield from _fields(here, f"{flag}." if partial else "--", inner, partial=partial)
        # A required field of a `Given` struct gets no option: the command fills it in itself.
        if len(tables) < len(alternatives(kind)) and not (partial and default in UNSET):
            yield Option(here, flag, kind, default, partial)


def meta(kind: Any) -> dict[str, Any]:
    """The metadata of an annotation: `help`, `flag` if it differs from the field's name, and a path's `kind` (file, folder)."""
    found = list(_metas(kind))
    extra = {key: value for m in found for key, value in (m.extra or {}).items()}
    return {"help": next((m.description for m in found if m.description), ""), **extra}


def _metas(kind: Any) -> Iterator[msgspec.Meta]:
    """Every `msgspec.Meta` of an annotation: the outermost first, then those of the members of a union."""
    yield from (m for m in getattr(kind, "__metadata__", ()) if isinstance(m, msgspec.Meta))
    inner = get_args(kind)[:1] if get_origin(kind) is Annotated else get_args(kind)
    for part in inner if get_origin(kind) in (Annotated, Union, UnionType) else ():
        yield from _metas(part)


def _without_none(kind: Any) -> Any:
    if get_origin(kind) is Annotated:
        return Annotated[(_without_none(get_args(kind)[0]), *kind.__metadata__)]
    if get_origin(kind) in (Union, UnionType):
        return functools.reduce(operator.or_, (part for part in get_args(kind) if part is not type(None)))
    return kind


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help whose descriptions begin in one column."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34)


class Parser(argparse.ArgumentParser):
    """The parser of one command. `verbs` are the commands below its name, listed at the end of its help. Raises UsageError."""

    def __init__(self, function: Callable[..., Any], name: str, verbs: list[str]):
        see = f"See also: {', '.join(f'{name} {verb}' for verb in verbs)}." if verbs else ""
        super().__init__(prog=name, description=inspect.getdoc(function), epilog=see, formatter_class=Formatter, allow_abbrev=False)
        self.function, self.options, self.verbs = function, options_of(function), verbs
        self.usage = " ".join([name, *(o.name for o in self.options if not o.flag), "[OPTIONS]"])
        groups: dict[str, Any] = {}
        for option in self.options:
            table = f"table [{'.'.join(option.path[1:-1])}] of the run file"
            group = groups.setdefault(table, self.add_argument_group(table)) if len(option.path) > 2 else self
            _add(group, option)

    def call(self, arguments: list[str]) -> inspect.BoundArguments:
        """Parse the command line into the arguments for a call of the function. Raises UsageError."""
        texts, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            near = nearest(unknown[0].split("=")[0], [*(o.flag for o in self.options), *self.verbs])
            raise UsageError(f"`{self.prog}` does not take {unknown[0]}{near}: see `{self.prog} --help`.")
        return bind(self.function, self.options, vars(texts))

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"`{self.prog}`: {message}; see `{self.prog} --help`.")


def _add(group: Any, option: Option) -> None:
    default, required = option.default, option.default in UNSET
    silent = required or default is None or default is False or default in ([], (), {})
    shown_default = "" if silent else f" [{_shown(default)}]"
    text = f"{meta(option.type)['help']}{shown_default}".replace("%", "%%")
    shared: dict[str, Any] = {"help": text, "dest": ".".join(option.path)}
    names = [METAVARS.get(option.item or kind, "TOML") for kind in option.kinds if get_origin(kind) is not Literal]
    metavar = "|".join([*option.choices, *dict.fromkeys(names)])
    if not option.flag:
        group.add_argument(**shared, metavar=option.name, nargs="+" if option.item else None if required else "?")
    elif option.kinds == [bool] and (option.partial or default is True):
        group.add_argument(option.flag, **shared, action=argparse.BooleanOptionalAction)
    elif option.kinds == [bool]:
        group.add_argument(option.flag, **shared, action="store_const", const=True)
    else:
        action = "append" if option.item else "store"
        group.add_argument(option.flag, **shared, metavar=metavar, required=required, action=action)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def bind(function: Callable[..., Any], options: list[Option], texts: dict[str, Any]) -> inspect.BoundArguments:
    """The arguments for a call, from the texts given for its options. Raises UsageError that names the wrong option."""
    signature, hints = inspect.signature(function), get_type_hints(function)
    given: dict[str, Any] = {name: {} for name, kind in hints.items() if get_origin(kind) is Given}
    for option in options:
        if (text := texts.get(".".join(option.path))) is None:
            continue
        table = given
        for name in option.path[:-1]:
            table = table.setdefault(name, {})
        table[option.path[-1]] = _value(option, text)
    arguments = signature.bind_partial()
    defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
    arguments.arguments.update({name: _build(hints[name], given[name], defaults[name]) for name in defaults if name in given})
    return arguments


def _build(kind: Any, value: Any, default: Any = None) -> Any:
    """`value` itself; or, if `kind` is a table, that table with the fields in `value` and all other fields as in `default`."""
    if not is_table(kind):
        return value
    hints = get_type_hints(kind)
    fields = {name: _build(hints[name], part, getattr(default, name, None)) for name, part in value.items()}
    if not isinstance(default, kind):
        return kind(**fields)
    replace = msgspec.structs.replace if isinstance(default, msgspec.Struct) else dataclasses.replace
    return cast(Any, replace)(default, **fields)


def _value(option: Option, text: Any) -> Any:
    if option.item is None:
        return _read(option, _without_none(option.type), text)
    return get_origin(option.kinds[0])(_read(option, option.item, one) for one in text)


def _read(option: Option, kind: Any, text: Any) -> Any:
    """Convert the text of an option to its type. Tables and lists are written as in TOML; numbers may have a suffix, as in 15T."""
    value = text
    try:
        if isinstance(text, str) and text[:1] in ("[", "{") and not set(alternatives(kind)) <= METAVARS.keys():
            value = tomllib.loads(f"value = {text}")["value"]
        made = _convert(value, kind)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{option.name} takes a value written as in TOML, not {text!r}: {error}.") from None
    except msgspec.ValidationError as error:
        if value is not text:
            raise UsageError(f"{option.name} does not take {text!r}: {str(error).replace('`', '')}.") from None
        plain = text.isdecimal()  # a whole number that failed above is out of range: as a quantity it would be rounded to a float
        made = _quantity(text, kind) if {int, float} & set(option.kinds) and not plain else math.nan
    if unusable(made) is not None:
        raise UsageError(f"{option.name} must be {words(kind)}, not {shown(text)}{nearest(text, option.choices)}.")
    return made


def _quantity(text: str, kind: Any) -> Any:
    try:
        number = parse_quantity(text)
        return _convert(int(number) if number.is_integer() else number, kind)
    except (TenfoldError, msgspec.ValidationError):
        return math.nan


def _convert(value: Any, kind: Any) -> Any:
    return msgspec.convert(value, kind, strict=False, dec_hook=lambda wanted, text: wanted(text))


def require_kinds(options: list[Option], call: inspect.BoundArguments) -> None:
    """Raises TenfoldError if a path of the call is a folder where a file is needed, or a file where a folder is needed."""
    for option in options:
        kind = meta(option.type).get("kind")
        path = functools.reduce(_part, option.path[1:], call.arguments.get(option.path[0], option.default))
        if kind is None or not isinstance(path, Path):
            continue
        try:
            path.stat()
            found = "folder" if path.is_dir() else "file"
        except FileNotFoundError:
            found = kind
        except OSError as error:
            raise TenfoldError(f"{option.name} cannot be {shown(str(path))}: {reason(error)}.") from None
        if found != kind:
            raise TenfoldError(f"{option.name} must be a {kind}, and {path} is a {found}.")


def _part(table: Any, name: str) -> Any:
    return table.get(name) if isinstance(table, dict) else getattr(table, name, None)
