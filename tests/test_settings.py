"""Every setting of a run file and every argument of a command: what is in its range is taken, all else is one sentence.

Settings and arguments are found in the structs and functions themselves, so that a new one is drawn as well.
"""

import math
import random
from pathlib import Path
from typing import Any, get_args

import msgspec
import tomli_w
from msgspec import Meta

from tenfold.cli.options import Option
from tenfold.spec.errors import TenfoldError
from tenfold.spec.layout import Layout
from tenfold.spec.model import ModelSpec, RopeScaling
from tenfold.spec.plugins import plugins
from tenfold.spec.ranges import alternatives, hints_of, is_table
from tenfold.spec.vision import VisionSpec
from tenfold.train.config import PretrainingConfig, RunConfig
from tenfold.train.resolve import check_settings
from tenfold.train.run_file import read_config, task_settings

COMMANDS = sorted({entry.value: name for name, entry in plugins("commands").items()}.values())
# Of every kind something that a person can write and nobody means, and something that is right here or there.
NUMBERS = [0, 1, 2, 3, -1, 7, 64, 300, 4096, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 10**20, -(10**20)]
NUMBERS += [0.0, 0.5, 1.0, 1.5, -0.01, 1e-12, 1e9, 1e300, math.inf, -math.inf, math.nan]
TEXTS = ["", " ", "auto", "cpu", "cuda", "gpu", "mps", "meta", "cuda:99", "x", "[", "{", "a/b", "..", "s3://", "foo://x/y"]
TEXTS += ["\u00e4\u6f22", "[red]", "x" * 5000, "%s", "-", "local:99999999999999999999", "llama-3.2-1b", "llama4", "none"]
OTHERS: list[Any] = [
    True,
    False,
    [],
    [1],
    [[]],
    {},
    {"a": 1},
    [[0, 1.0]],
    [{"corpus": "x"}],
    [{"corpus": "x", "weight": [[5, -1.0]]}],
]


def settings() -> dict[str, Any]:
    """The type of every setting of a run file by its dotted name."""
    tables = {"task": PretrainingConfig, "model": ModelSpec, "parallel": Layout}
    tables |= {"model.vision": VisionSpec, "model.rope_scaling": RopeScaling}
    found: dict[str, Any] = {"model.width": int}
    for name, kind in hints_of(RunConfig).items():
        found[name] = kind
        tables |= {key: one for one in alternatives(kind) for key in [name] if is_table(one) and name not in tables}
    return found | {f"{name}.{key}": kind for name, table in tables.items() for key, kind in hints_of(table).items()}


SETTINGS = settings()


def in_range(value: Any, kind: Any) -> bool:
    """Whether a value is of a type and range, worked out apart from the code under test."""
    if (base := getattr(kind, "__origin__", None)) is not None and hasattr(kind, "__metadata__"):
        bounds = [m for m in kind.__metadata__ if isinstance(m, Meta)]
        if not in_range(value, base):
            return False
        numbers = isinstance(value, int | float)
        checks = {"gt": lambda b: value > b, "ge": lambda b: value >= b, "lt": lambda b: value < b, "le": lambda b: value <= b}
        inside = all(check(b) for m in bounds for name, check in checks.items() if numbers and (b := getattr(m, name)) is not None)
        return inside and all(len(value) >= m.min_length for m in bounds if m.min_length and not numbers)
    kinds = get_args(kind) if type(None) in get_args(kind) or str(getattr(kind, "__origin__", "")) == "typing.Union" else ()
    if kinds or type(kind).__name__ == "UnionType":
        return any(in_range(value, one) for one in get_args(kind) if one is not type(None))
    if str(getattr(kind, "__origin__", "")) == "typing.Literal":
        return value in get_args(kind)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 2**1000
    if kind is int:
        return type(value) is int and abs(value) < 2**63
    return isinstance(value, kind) if isinstance(kind, type) and not is_table(kind) else True


def written(key: str, value: Any) -> dict[str, Any]:
    """The fields of a run file that differs from a right one in this setting alone."""
    fields: dict[str, Any] = {"tokens": 20480, "model": {"width": 32}, "data": {"corpus": "x", "seq_len": 64, "vocab_size": 512}}
    table = fields
    for part in key.split(".")[:-1]:
        if not isinstance(table.get(part), dict):
            table[part] = {}
        table = table[part]
    table[key.split(".")[-1]] = value
    if key.startswith("model.vision"):
        fields["data"]["images"] = "drawings"
        fields["model"] = {"width": 32, "family": "llama4"} | fields["model"]
    if key == "flops":
        del fields["tokens"]
    return fields


def draw(random_: random.Random) -> tuple[str, Any]:
    return random_.choice(list(SETTINGS)), random_.choice(random_.choice([NUMBERS, NUMBERS, TEXTS, OTHERS]))


def try_settings(random_: random.Random, folder: Path) -> None:
    """Draw a value of one setting, and do all that `tenfold train` does before it makes data."""
    key, value = draw(random_)
    file = folder / "run.toml"
    file.write_text(tomli_w.dumps(written(key, value)))
    name = key.split(".")[-1]
    try:
        config = read_config(file)
        task_settings(config, PretrainingConfig)
        check_settings(config)
    except TenfoldError as error:
        said = str(error)
        assert "\n" not in said and said.endswith("."), (key, value, said)
        assert in_range(value, SETTINGS[key]) or name in said or key.split(".")[0] in said, (key, value, said)
    else:
        assert in_range(value, SETTINGS[key]), f"{key} = {value!r} was taken"


def wrong_text(option: Option, random_: random.Random) -> str | None:
    """A text that the option's type or range excludes, or None where it takes any."""
    texts = [*map(str, NUMBERS), *TEXTS]
    random_.shuffle(texts)
    kinds = set(option.kinds)
    if not kinds <= {int, float}:
        return None if not option.choices or kinds & {str, Path} else "x"
    numbers = [t for t in texts if t not in ("", " ") and not t.startswith("-") and _number(t) is not None]
    return next((t for t in numbers if not in_range(_number(t), option.type)), None)


def _number(text: str) -> float | int | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def words_of(options: list[Option], random_: random.Random, folder: Path) -> tuple[list[str], Option | None]:
    """Arguments of a command, with one that is wrong where there is such: its option."""
    paths = [str(folder / name) for name in ("missing", "empty", "file.txt", "binary.bin", "x" * 300)]
    words, wrong = [], None
    for option in options:
        required = option.default in (msgspec.NODEFAULT,) or repr(option.default) == "<class 'inspect._empty'>"
        if not required and random_.random() < 0.8:
            continue
        text = random_.choice(paths if Path in option.kinds else [*TEXTS, *map(str, NUMBERS)])
        if option.kinds == [bool]:
            words.append(option.flag)
            continue
        words += [f"{option.flag}={text}"] if option.flag else [text if not text.startswith("-") else "x"]
    can = [(option, text) for option in options if option.flag and (text := wrong_text(option, random_)) is not None]
    if can:
        wrong, text = random_.choice(can)
        words = [word for word in words if not word.startswith(f"{wrong.flag}=")]
        words.append(f"{wrong.flag}={text}")
    return words, wrong
