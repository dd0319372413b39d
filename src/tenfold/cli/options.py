"""A function as a command: its parameters, and the fields of the structs among them, are the command's arguments and options."""

import dataclasses
import functools
import inspect
import tomllib
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec
import typer

from tenfold.spec.commands import Given
from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.units import parse_quantity

NAMES = {str: "TEXT", int: "INT", float: "NUMBER", Path: "PATH", date: "DATE"}
UNSET = (inspect.Parameter.empty, dataclasses.MISSING, msgspec.NODEFAULT)


class Option(NamedTuple):
    """`path` is where a value goes: the parameter's name, then those of fields. `flag` is empty for an argument."""

    path: tuple[str, ...]
    flag: str
    type: Any
    default: Any
    partial: bool = False  # a field of `Given`: nothing is passed where it is not given

    @property
    def key(self) -> str:
        return "__".join(self.path)

    @property
    def name(self) -> str:
        """What a person calls it."""
        return self.flag or self.path[-1].upper()


def options_of(function: Callable[..., Any]) -> list[Option]:
    """The options of a command, in the order of its parameters."""
    hints = get_type_hints(function, include_extras=True)
    found: list[Option] = []
    for parameter in inspect.signature(function).parameters.values():
        kind = hints[parameter.name]
        if get_origin(kind) is Given or _is_table(kind):
            found += _fields((parameter.name,), "", kind)
        else:
            positional = parameter.kind is inspect.Parameter.POSITIONAL_ONLY
            flag = "" if positional else f"--{parameter.name.replace('_', '-')}"
            found.append(Option((parameter.name,), flag, kind, parameter.default))
    return found


def as_command(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with a signature that typer understands: one parameter for each option, and its text as its type."""
    options = options_of(function)

    @functools.wraps(function)
    def command(**texts: Any) -> Any:
        return function(*(call := bind(function, texts)).args, **call.kwargs)

    parameters = [
        inspect.Parameter(o.key, inspect.Parameter.KEYWORD_ONLY, annotation=_annotation(o), **_default(o)) for o in options
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def bind(function: Callable[..., Any], texts: dict[str, Any]) -> inspect.BoundArguments:
    """The arguments of a call, from the texts of its options by `Option.key`. Raises TenfoldError that names a wrong option."""
    signature, hints = inspect.signature(function), get_type_hints(function)
    given: dict[str, Any] = {}
    for option in options_of(function):
        table = given
        for name in option.path[:-1]:
            table = table.setdefault(name, {})
        text = texts.get(option.key)
        if text is not None and not (text == [] and option.default is None):
            table[option.path[-1]] = read(option, text)
    built = {name: _build(hints[name], value) for name, value in given.items()}
    arguments = signature.bind_partial()
    arguments.arguments.update({name: built[name] for name in signature.parameters if name in built})
    return arguments


def read(option: Option, text: Any) -> Any:
    """An option's text as its type: tables and lists are written as in TOML, numbers also as 15T."""
    if isinstance(text, bool):
        return text
    if isinstance(text, list):
        item = option._replace(type=get_args(_plain(option.type)[0])[0])
        return [read(item, one) for one in text]
    kinds = _plain(option.type)
    try:
        value = tomllib.loads(f"value = {text}")["value"] if text[:1] in ("[", "{") and kinds != [str] else text
        return _convert(value, option.type)
    except tomllib.TOMLDecodeError as error:
        raise TenfoldError(f"{option.name} takes a value as in TOML, not {text!r}: {error}.") from None
    except msgspec.ValidationError as error:
        if {int, float} & set(kinds):
            with_unit = _quantity(text, option.type)
            if with_unit is not None:
                return with_unit
        choices = _choices(option.type)
        expected = " or ".join(choices) or str(error).removeprefix("Expected ").split(", got")[0].replace("`", "")
        raise TenfoldError(f"{option.name} must be {expected}, not {text!r}{nearest(text, choices)}.") from None


def _quantity(text: str, kind: Any) -> Any:
    try:
        number = parse_quantity(text)
        return _convert(int(number) if number.is_integer() else number, kind)
    except (TenfoldError, msgspec.ValidationError):
        return None


def _convert(value: Any, kind: Any) -> Any:
    return msgspec.convert(value, kind, strict=False, dec_hook=lambda wanted, text: wanted(text))


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind))


def _fields(path: tuple[str, ...], prefix: str, kind: Any, partial: bool = False) -> Iterator[Option]:
    if get_origin(kind) is Given:
        kind, partial = get_args(kind)[0], True
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind) if issubclass(kind, msgspec.Struct) else dataclasses.fields(kind):
        default = field.default_factory() if field.default_factory not in UNSET else field.default
        here, name = (*path, field.name), f"{prefix}{field.name.replace('_', '-')}"
        if _is_table(hints[field.name]):
            yield from _fields(here, f"{name}.", hints[field.name], partial)
        elif not (partial and default in UNSET and not _meta(hints[field.name])["help"]):  # this the command fills in
            yield Option(here, _meta(hints[field.name]).get("flag", f"--{name}"), hints[field.name], default, partial)


def _build(kind: Any, value: Any) -> Any:
    """`value` as it is, or where a table is wanted its fields as one."""
    if not _is_table(kind):
        return value
    hints = get_type_hints(kind)
    return kind(**{name: _build(hints[name], part) for name, part in value.items()})


def _plain(kind: Any) -> list[Any]:
    """The alternatives of a type, without None and annotations."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [plain for part in get_args(kind) if part is not type(None) for plain in _plain(part)]
    return [kind]


def _choices(kind: Any) -> list[str]:
    return [str(choice) for plain in _plain(kind) if get_origin(plain) is Literal for choice in get_args(plain)]


def _meta(kind: Any) -> dict[str, Any]:
    """What an annotation says: its help, and in `extra` a flag where it is not the field's name."""
    metas = [m for m in getattr(kind, "__metadata__", ()) if isinstance(m, msgspec.Meta)]
    return {"help": metas[0].description or "", **(metas[0].extra or {})} if metas else {"help": ""}


def _annotation(option: Option) -> Any:
    kinds = _plain(option.type)
    many = get_origin(kinds[0]) is list and get_args(kinds[0])[0] in NAMES
    names = [NAMES.get(get_args(k)[0] if many else k, "TOML") for k in kinds if get_origin(k) is not Literal]
    shown: dict[str, Any] = {"help": _meta(option.type)["help"], "metavar": "|".join(_choices(option.type) + names)}
    if not option.flag:
        return Annotated[list[str] if many else str, typer.Argument(**shown | {"metavar": option.name})]
    default = option.default
    if option.partial:
        shown["show_default"] = str(default) if default not in (None, *UNSET) and not _is_table(type(default)) else False
    if len(option.path) > 2:
        shown["rich_help_panel"] = f"[{option.path[-2]}] of the run file"
    if kinds == [bool]:
        both = option.partial or default is True
        names = [f"{option.flag}/--no-{option.flag[2:]}" if both else option.flag]
        del shown["metavar"]
        return Annotated[bool | None if option.partial else bool, typer.Option(*names, **shown)]
    return Annotated[list[str] if many else str, typer.Option(option.flag, **shown)]


def _default(option: Option) -> dict[str, Any]:
    if option.default in UNSET:
        return {}
    if option.partial or option.default in (None, [], ()):
        return {"default": None}
    value = option.default
    return {"default": value if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)}
