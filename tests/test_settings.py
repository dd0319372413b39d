"""Every setting of a run file and every argument of a command: what is in its range is taken, all else is one sentence.

Settings and arguments are found in the structs and functions themselves, so that a new one is drawn as well.
"""

import math
import random
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
import tomli_w
from msgspec import Meta

from tenfold.cli.commands import find, run
from tenfold.cli.options import UNSET, Option, meta, require_kinds
from tenfold.spec.errors import TenfoldError
from tenfold.spec.layout import Layout
from tenfold.spec.model import ModelSpec, RopeScaling
from tenfold.spec.plugins import plugins
from tenfold.spec.ranges import alternatives, hints_of, is_table
from tenfold.spec.vision import VisionSpec
from tenfold.train.config import PretrainingConfig, RunConfig
from tenfold.train.resolve import check_settings, resolve_model
from tenfold.train.run_file import config_from_fields, read_config, task_settings
from tenfold.train.tasks.pretrain import Pretraining
from tenfold.train.text import open_text

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


def bounds_of(kind: Any) -> list[Meta]:
    inner = [part for part in get_args(kind) if part is not type(None)]
    return [m for m in getattr(kind, "__metadata__", ()) if isinstance(m, Meta)] + [m for part in inner for m in bounds_of(part)]


def wrong_texts(option: Option, folder: Path) -> list[str]:
    """Texts that the option's type or range excludes."""
    kinds, kind = set(option.kinds), meta(option.type).get("kind")
    if kind is not None:
        return [str(folder / ("empty" if kind == "file" else "none.txt")), "x" * 5000]
    if kinds <= {int, float}:
        whole = kinds == {int}
        values = [int(v) if whole and math.isfinite(v) and v == int(v) else v for v in NUMBERS]
        return [*(repr(v) for v in values if not in_range(v, option.type)), "eighty", ""]
    if option.choices and not kinds & {str, Path}:
        return ["nope", ""]
    return [""] if any(m.min_length for m in bounds_of(option.type)) else []


def range_said(option: Option, said: str) -> bool:
    """Whether a sentence says all that an option takes."""
    if (kind := meta(option.type).get("kind")) is not None:
        return kind in said or "name too long" in said
    limits = [b for m in bounds_of(option.type) for b in (m.gt, m.ge, m.lt, m.le) if b is not None]
    words = [*option.choices, *(f"{b:g}" if isinstance(b, float) else str(b) for b in limits)]
    return all(word in said for word in words)


def words_of(options: list[Option], draw: random.Random, folder: Path) -> tuple[list[str], list[Option]]:
    """Arguments of a command, and the options among them that are wrong: one at least where any can be."""
    can = [option for option in options if option.flag and wrong_texts(option, folder)]
    wrong = draw.sample(can, min(len(can), draw.choice([1, 1, 2])))
    words = [f"{option.flag}={draw.choice(wrong_texts(option, folder))}" for option in wrong]
    for option in options:
        if not option.flag:
            words.append(draw.choice(["missing", "x", str(folder / "binary.bin"), *TEXTS[2:10]]))
        elif option.default in UNSET and option not in wrong:
            words.append(f"{option.flag}={'1' if option.kinds[0] in (int, float) else 'x'}")
        elif option.kinds != [bool] and option not in wrong and draw.random() < 0.05:
            words.append(f"{option.flag}={draw.choice([*TEXTS, *map(repr, NUMBERS)])}")
    draw.shuffle(words)
    return words, wrong


def try_command(draw: random.Random, folder: Path) -> None:
    """Draw arguments of one command, and do all that the command line does before it calls the command."""
    name = draw.choice(COMMANDS)
    parser, _ = find(name.split("."))
    assert parser is not None
    words, wrong = words_of(parser.options, draw, folder)
    try:
        require_kinds(parser.options, parser.call(words))
    except TenfoldError as error:
        said = str(error)
        named = max((o for o in parser.options if said.startswith(f"{o.name} ")), key=lambda o: len(o.name), default=None)
        assert named is not None and "\n" not in said, (name, words, said)
        assert named not in wrong or range_said(named, said), (name, words, said)
    else:
        assert not wrong, f"tenfold {name} took {words}"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder, in which the process stands, of files that hold nothing that any command can use."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for ending in ("txt", "csv", "gguf", "toml", "json", "bin"):
        (tmp_path / f"none.{ending}").touch()
        (tmp_path / f"binary.{ending}").write_bytes(bytes(range(255, 0, -1)) * 8)
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "broken.toml").write_text("a = ")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    return tmp_path


@pytest.mark.parametrize("draws", [150, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("attempt", [try_settings, try_command])
def test_what_is_out_of_range_is_one_sentence_that_names_the_key_and_its_range(attempt, draws, files):
    for seed in range(draws):
        attempt(random.Random(seed), files)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("data = { mixture = [{ corpus = 'x' }], corpus = 'y' }", "corpus in the table [data], 'y', which has no effect"),
        ("optimizer = { warmup = 0.8, decay = 0.8 }", "warmup and decay"),
        ("optimizer = { schedule = 'cosine', decay = 0.3 }", "decay in the table [optimizer], 0.3, which has no effect"),
        ("data = { image_share = 0.3 }", "image_share in the table [data], 0.3, which has no effect where no images"),
        ("data = { cache_gib = 1 }", "cache_gib in the table [data], 1.0, which has no effect"),
        ("parallel = { schedule = 'interleaved' }", "schedule in the table [parallel]"),
        ("law = 'llama3'", "law, 'llama3', which has no effect"),
        ("data = { batch_size = 100000 }", "lower batch_size"),
        ("data = { seq_len = 100000 }", "fewer than a sequence"),
        ("model = { width = 32, dim = 64 }", "both width and dim"),
        ("model = { width = 32, nonsense = 1 }", "no setting 'nonsense'"),
        ("model = { width = 32, n_layers = 0 }", "n_layers must be a whole number >= 1"),
        ("model = { width = 32, rope_scaling = { foo = 1 } }", "no setting 'foo'"),
    ],
)
def test_settings_that_contradict_or_have_no_effect_are_refused(settings, sentence):
    fields = {"tokens": 20480, "model": {"width": 32}} | tomllib.loads(settings)
    with pytest.raises(TenfoldError) as error:
        check_settings(config_from_fields(fields, "run.toml"))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ({"mtp_weight": 0.5}, "mtp_weight, 0.5, which has no effect where mtp is 0"),
        ({"load_balancing": "aux_loss"}, "which has no effect where the model has no experts"),
        ({"load_balancing_rate": 0.5}, "which has no effect where the model has no experts"),
        ({"evaluate_every": -1}, "evaluate_every must be a whole number >= 0, not -1"),
    ],
)
def test_settings_of_the_task_that_have_no_effect_are_refused(task, sentence, corpus, tmp_path):
    fields = {"tokens": 20480, "model": {"width": 32}, "task": task}
    with pytest.raises(TenfoldError) as error:
        Pretraining(config_from_fields(fields, "run.toml"), corpus, tmp_path)
    assert sentence in str(error.value)


def test_a_vocabulary_that_a_built_corpus_does_not_have_is_refused(corpus, tmp_path):
    fields = {"tokens": 20480, "model": {"width": 32}, "data": {"corpus": str(corpus.directory), "vocab_size": 999}}
    with pytest.raises(TenfoldError, match="vocab_size in the table .data., 999, which has no effect where the text has 400"):
        open_text(config_from_fields(fields, "run.toml"), tmp_path)


def test_a_key_beside_the_width_changes_the_model():
    model = {"width": 32, "n_layers": 7, "vocab_size": 9999, "rope_scaling": {"factor": 4.0}}
    spec, _ = resolve_model(config_from_fields({"tokens": 20480, "model": model}, "run.toml"), 512)
    assert (spec.dim, spec.n_layers, spec.vocab_size, spec.rope_scaling) == (32, 7, 9999, RopeScaling(4.0))


ODD = """
train none.toml
train binary.toml
train broken.toml
train missing.toml
train --flops 1e12 --launch local:99999999999999999999
train --flops 1e12 --launch ray:3
train --flops 1e12 --device gpu
train --flops 1e12 --device mps
train --flops 1e12 --law list.json
train --flops 1e12 --law binary.json
train --flops 1e12 --law nope
train --flops 1e12 --init-from binary.bin
train --flops 1e12 --init-from none.gguf
train --flops 1e12 --model nope
train --flops 1e12 --task {name="nope"}
train --flops 1e12 --task {mtp=-1}
train --tokens 100000 --model {width=32,n_heads=0}
train dry-run --world 2 --flops 1e12 --machine nope
resume missing
score missing
sample missing
sample binary.bin
sample none.gguf
chat empty
serve missing
serve-key x --file binary.json
law fit none.csv
law fit binary.csv
law fit other.csv
law backtest binary.csv
law fit other.csv --plot x.xyz
data show empty
data upload missing foo://x
data build binary.bin --out made
data clean empty --out made
upcycle binary.bin --out made
launch binary.toml --on slurm --nodes 2
launch missing --on nope --nodes 2
plan --flops 1 --gpus 8
plan --flops 1e40 --days 0.001
plan --flops 1e20 --gpus 8 --law list.json
plan --flops 1e20 --gpus 8 --carbon-csv binary.csv
plan --flops 1e20 --gpus 8 --weather-epw binary.csv
plan --model binary.toml --tokens 1e9 --gpus 8
plan validate --layouts binary.csv
plan calibrate empty
rank train binary.csv
rank evaluate empty
learn sft empty --data none.txt
learn gate missing --against missing
learn rollback --home empty
fleet run --policy nope
fleet show --home empty
console --home missing
forecasts outcome x 3 --home empty
feedback export out.jsonl --database nope
"""


@pytest.mark.parametrize("line", ODD.strip().splitlines())
def test_a_file_or_a_name_that_a_command_cannot_use_is_one_sentence(line, files):
    with pytest.raises(TenfoldError) as error:
        run(line.split())
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
