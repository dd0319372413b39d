"""The command line: every command explains itself, its examples parse, and what is wrong is one sentence."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from msgspec import Meta, Struct

from tenfold.cli.commands import find, run, verbs
from tenfold.cli.options import Parser, UsageError, meta, options_of
from tenfold.spec.commands import Given
from tenfold.spec.errors import TenfoldError
from tenfold.spec.plugins import load, plugins

COMMANDS = sorted(plugins("commands"))
# Everyday commands, which stand under their rooms as well.
SHORT = ["climb", "train", "resume", "sample", "plan", "serve", "chat", "score", "upcycle", "launch", "serve-key"]


def help_of(name: str) -> str:
    parser, rest = find(name.split("."))
    assert parser is not None and not rest
    return parser.format_help()


def examples(text: str) -> list[list[str]]:
    """The words behind `tenfold` of each example in a help text, as a shell would divide them."""
    lines = [line.strip().removeprefix("Example: ") for line in text.splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    found = [re.sub(r"^torchrun .* -m tenfold ", "tenfold ", part) for part in parts]
    return [shlex.split(part, comments=True)[1:] for part in found if part.startswith("tenfold ")]


def test_every_room_has_commands_and_the_everyday_ones_a_short_form():
    assert set(SHORT) <= set(COMMANDS)
    assert {"data", "train", "scale", "plan", "serve", "launch", "model"} <= set(verbs([]))
    long = {plugins("commands")[name].value for name in COMMANDS if "." in name}
    assert {plugins("commands")[name].value for name in SHORT} <= long


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_and_a_text_for_each_option(name):
    text = help_of(name)
    assert "Example" in text and text.startswith(f"usage: tenfold {name.replace('.', ' ')}")
    unexplained = [option.name for option in options_of(load("commands", name)) if not meta(option.type)["help"]]
    assert not unexplained


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_parses(name):
    found = examples(help_of(name))
    assert found
    for words in found:
        parser, rest = find(words)
        assert parser is not None, words
        parser.call(rest)


def test_functions_take_few_parameters():
    for name in COMMANDS:
        assert load("commands", name).__code__.co_argcount + load("commands", name).__code__.co_kwonlyargcount <= 6, name


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("clmb", "There is no command `tenfold clmb` (did you mean 'climb'?)"),
        ("law ftt", "There is no command `tenfold law ftt` (did you mean 'fit'?)"),
        ("plan comparre", "(did you mean 'compare'?)"),
        ("climb --hoem x", "`tenfold climb` does not take --hoem (did you mean '--home'?)"),
        ("climb --optimizer adam", "--optimizer must be muon or adamw, not 'adam' (did you mean 'adamw'?)"),
        ("climb --vocab-size 1.5", "--vocab-size must be a whole number >= 1 and <= 16777216, not '1.5'"),
        ("climb --top 0", "--top must be a number > 0"),
        ("serve x --port eighty", "--port must be a whole number >= 0 and <= 65535, not 'eighty'"),
        ("upcycle x", "required: --out"),
        ("score", "required: GENERATION"),
        ("train run.toml --dry-run", "A dry run needs both --dry-run and --world N"),
    ],
)
def test_wrong_usage_is_one_sentence_that_names_the_nearest(arguments, sentence):
    with pytest.raises(TenfoldError) as error:
        run(arguments.split())
    assert sentence in str(error.value) and "\n" not in str(error.value)


class Table(Struct, frozen=True, kw_only=True):
    rate: Annotated[float | None, Meta(description="A number.")] = None
    kind: Annotated[Literal["a", "b"], Meta(description="A choice.")] = "a"


class Config(Struct, frozen=True, kw_only=True):
    tokens: Annotated[int | None, Meta(description="A count.")] = None
    weights: Annotated[float | list[tuple[int, float]], Meta(description="A number or pairs.")] = 1.0
    on: Annotated[bool, Meta(description="A switch.")] = False
    table: Table = Table()
    layout: Annotated[Literal["auto"] | Table, Meta(description="A word or a table.")] = Table()


def command(
    path: Annotated[Path, Meta(description="A path.")],
    /,
    *,
    whole: Table = Table(),
    changes: Given[Config],
    many: Annotated[list[str], Meta(description="Several.")] = [],  # noqa: B006
) -> None:
    """A command.

    Example: none
    """


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("--tokens 15T", {"tokens": 15 * 10**12}),
        ("--weights 0.5", {"weights": 0.5}),
        ("--weights [[0,1],[10,0.5]]", {"weights": [(0, 1.0), (10, 0.5)]}),
        ("--table.rate 1e-3 --table.kind b", {"table": {"rate": 1e-3, "kind": "b"}}),
        ("--no-on", {"on": False}),
        ("--layout auto", {"layout": "auto"}),
        ("--layout.kind b", {"layout": {"kind": "b"}}),
        ("", {}),
    ],
)
def test_a_struct_in_a_struct_is_options_with_dots_and_only_those_given_are_passed(words, changes):
    call = Parser(command, "command", []).call(["x.toml", *words.split()])
    assert call.args == (Path("x.toml"),) and call.kwargs["changes"] == changes


def test_a_struct_is_built_of_its_options_and_lists_of_repeated_ones():
    call = Parser(command, "command", []).call(["--many", "p", "--kind", "b", "x.toml", "--many", "q"])
    assert call.args == (Path("x.toml"),) and call.kwargs == {"whole": Table(kind="b"), "changes": {}, "many": ["p", "q"]}
    with pytest.raises(UsageError, match=r"--layout\.kind must be a or b, not 'c'"):
        Parser(command, "command", []).call(["x.toml", "--layout.kind", "c"])


def test_options_may_be_written_as_the_keys_of_a_run_file():
    parser, rest = find(["climb", "--vocab_size=300", "--corpus", "a_b"])
    assert parser.call(rest).kwargs["settings"].vocab_size == 300 and parser.call(rest).kwargs["settings"].corpus == "a_b"


def tenfold(*arguments):
    return subprocess.run([sys.executable, "-m", "tenfold", *arguments], capture_output=True, text=True)


def test_errors_go_to_standard_error_with_a_status_and_a_trace_only_for_debug():
    wrong, missing, debug = tenfold("climb", "--x"), tenfold("score", "nowhere"), tenfold("--debug", "score", "nowhere")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and not wrong.stdout
    assert missing.returncode == 1 and missing.stderr.startswith("tenfold: ") and missing.stderr.count("\n") == 1
    assert "Traceback" in debug.stderr
    assert "\x1b" not in tenfold("--help").stdout + wrong.stderr


@pytest.mark.parametrize("words", [[], ["train"], ["serve"], ["plan"], ["climb"], ["launch"], ["circle"], ["rank", "train"]])
def test_help_starts_without_what_only_a_run_needs(words):
    code = "import sys\nfrom tenfold.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", code, *words, "--help"], capture_output=True, text=True)
    loaded = set(ended.stderr.split())
    heavy = {"torch", "scipy", "numpy", "rich", "matplotlib", "ray", "pyarrow", "tokenizers", "fastapi", "pydantic", "sqlalchemy"}
    assert "Examples:" in ended.stdout or "Example:" in ended.stdout or not words
    assert "tenfold.cli.commands" in loaded and not loaded & heavy
    assert len(loaded) < 300  # a start takes its time for modules
