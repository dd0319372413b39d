"""Every path that a command reads or writes, given as what it cannot be: one sentence, never a stack trace."""

import inspect
from pathlib import Path

import pytest

from tenfold.cli.commands import run
from tenfold.cli.options import meta, options_of
from tenfold.spec.errors import TenfoldError
from tenfold.spec.plugins import load, plugins

# What else a command needs before it comes to its paths. Arguments that are paths are in `GOOD`.
NEEDS = {
    "circle": "--flops 1e12",
    "circle.walk": "--flops 1e12",
    "climb": "--flops 1e12",
    "data.build": "--source SOURCE",
    "forecasts.outcome": "key 3",
    "launch": "--on slurm --nodes 2",
    "launch.job": "--on slurm --nodes 2",
    "learn.distil": "--width 32 --data POINTS",
    "learn.gate": "--against missing",
    "learn.sft": "--data POINTS",
    "learn.dpo": "--data POINTS",
    "learn.kto": "--data POINTS",
    "plan": "--flops 1e20 --gpus 8",
    "plan.compare": "--flops 1e20 --gpus 8",
    "plan.fleet": "--flops 1e20 --gpus 64",
    "plan.make": "--flops 1e20 --gpus 8",
    "serve-key": "ann",
    "serve.key": "ann",
    "train": "--flops 1e12",
    "train.run": "--flops 1e12",
}
ODD = ("folder", "binary", "empty", "binary/below", "loop", "/proc/self/nowhere/x", "x" * 300)
POINTS = "params,tokens,loss\n" + "".join(
    f"{n:.0f},{d:.0f},{1 + 400 / n**0.34 + 400 / d**0.28}\n" for n in (1e6, 4e6, 1.6e7) for d in (1e7, 4e7, 1.6e8)
)


def is_path(option):
    return option.item is Path or Path in option.kinds


def paths():
    """(command, option) of every path, each function once."""
    seen = set()
    for name in sorted(plugins("commands")):
        function = load("commands", name)
        if function not in seen:
            seen.add(function)
            yield from ((name, option.name) for option in options_of(inspect.unwrap(function)) if is_path(option))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder" / "within").mkdir(parents=True)
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "empty").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "POINTS").write_text(POINTS)
    return tmp_path


# Commands that load models are slow to start.
QUICK = ("chat", "circle", "climb", "console", "data", "export", "feedback", "fleet", "forecasts", "launch", "law")
CASES = [
    pytest.param(command, name, id=f"{command} {name}", marks=[] if command.split(".")[0] in QUICK else pytest.mark.slow)
    for command, name in paths()
]


@pytest.mark.parametrize(("command", "name"), CASES)
def test_a_path_that_cannot_be_used_is_one_sentence(command, name, here):
    options = {option.name: option for option in options_of(load("commands", command))}
    words = [*command.split("."), *NEEDS.get(command, "").split()]
    for option in options.values():
        if not option.flag and is_path(option) and option.name != name:
            words.append("POINTS")
    is_folder = meta(options[name].type).get("kind") == "folder"
    for odd in ["POINTS" if is_folder and odd == "folder" else odd for odd in ODD]:
        try:
            run([*words, odd] if not options[name].flag else [*words, name, odd])
        except TenfoldError as error:
            assert "\n" not in str(error) and str(error).endswith("."), str(error)
        except OSError as error:
            assert error.filename, "a sentence can only be made of an error that names its file"
