"""An mkdocs hook (`make docs`): makes the first page from the README, and the reference from the commands and settings structs."""

import inspect
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File
from msgspec import NODEFAULT, Struct, structs

from tenfold.cli.options import Option, meta, options_of
from tenfold.fleet import fleet_file
from tenfold.learn import options as learning
from tenfold.learn.tasks.distil import DistilConfig
from tenfold.rank.task import RankConfig
from tenfold.spec.layout import Layout
from tenfold.spec.plugins import load, plugins
from tenfold.spec.ranges import hints_of, words
from tenfold.train import config as run_file

ROOT = Path(__file__).parents[1]
RUN_TABLES = {
    "the run": run_file.RunConfig, "[data]": run_file.DataConfig, "[[data.mixture]]": run_file.MixedCorpus,
    "[task]": run_file.PretrainingConfig, "[optimizer]": run_file.OptimizerConfig, "[parallel]": Layout,
    "[checkpoint]": run_file.CheckpointConfig, "[log]": run_file.LogConfig, "[health]": run_file.HealthConfig,
    '[task] with name = "sft"': learning.SFTConfig, '[task] with name = "dpo"': learning.DPOConfig,
    '[task] with name = "kto"': learning.KTOConfig, '[task] with name = "grpo"': learning.GRPOConfig,
    '[task] with name = "stored_grpo"': learning.StoredGRPOConfig, '[task] with name = "distil"': DistilConfig,
    '[task] with name = "rank"': RankConfig,
}  # fmt: skip
FLEET_TABLES = {
    "[simulation]": fleet_file.SimulationTable, "[sites.NAME]": fleet_file.SiteTable, "[pools.NAME]": fleet_file.PoolTable,
    "[services.NAME]": fleet_file.ServiceTable, "[jobs.NAME]": fleet_file.JobsTable, "[runs.NAME]": fleet_file.RunTable,
    "needs": fleet_file.Resources,
}  # fmt: skip
# A line of text directly before a list; not a list item, a heading, an indented line or an empty line.
BEFORE_A_LIST = re.compile(r"^(?!\s*(?:[-*]|\d+\.) |\s*$|#|    )(.+\n)(?=(?:[-*]|\d+\.) )", re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site's files."""
    readme = (ROOT / "README.md").read_text().replace("](docs/", "](")
    made = {
        "index.md": readme,
        "reference/commands.md": commands(),
        "reference/run-file.md": settings("Run files", "The TOML tables that `tenfold train FILE` reads.", RUN_TABLES),
        "reference/fleet-file.md": settings("Fleet files", "The TOML tables that `tenfold fleet` reads.", FLEET_TABLES),
    }
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **page: Any) -> str:
    """Insert an empty line before each list: Python-Markdown needs it, and the documents, which are CommonMark, have none."""
    fences = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if i % 2 else BEFORE_A_LIST.sub(r"\1\n", part) for i, part in enumerate(fences))


def commands() -> str:
    """The page of all commands, by room: help, examples, arguments and options. A short name is listed with the long one."""
    known = plugins("commands")
    by_function: dict[str, list[str]] = {}
    for name in sorted(known, key=lambda name: ("." not in name, name)):
        by_function.setdefault(known[name].value, []).append(name)
    first = sorted(by_function.values())
    said = "Every command has `--help`. Write `tenfold --debug COMMAND ...` to see the stack trace of an error."
    parts = ["# Commands", said]
    for room, names in groupby(first, key=lambda names: names[0].partition(".")[0]):
        parts += [f"## {room}", *(text for one in names for text in command(one))]
    return "\n\n".join(parts) + "\n"


def command(names: list[str]) -> Iterator[str]:
    """The section of the command that has all these `names`."""
    function = load("commands", names[0])
    long, *others = (f"tenfold {name.replace('.', ' ')}" for name in names)
    yield f"### {long}"
    if others:
        yield "Also " + ", ".join(f"`{other}`" for other in others) + "."
    said, _, examples = (inspect.getdoc(function) or "").partition("Example")
    yield said.strip()
    lines = [line.strip() for line in examples.partition(":")[2].splitlines()]
    yield "\n".join(["```console", *(line for line in lines if line), "```"])
    yield table(("option", "takes", "default", "what"), (option_row(option) for option in options_of(function)))


def option_row(option: Option) -> tuple[str, ...]:
    takes = "a switch" if option.kinds == [bool] else words(option.type)
    return f"`{option.name}`", takes, default(option.default), meta(option.type)["help"]


def settings(title: str, said: str, tables: dict[str, type]) -> str:
    """A page of a file's tables: the docstring of each table's struct, and a row for each field."""
    parts = [f"# {title}", said]
    for name, struct in tables.items():
        kinds = hints_of(struct)
        rows = [
            (f"`{f.name}`", words(kinds[f.name]), default(_default(f)), meta(kinds[f.name])["help"]) for f in structs.fields(struct)
        ]
        parts += [f"## {name}", inspect.getdoc(struct) or "", table(("key", "takes", "default", "what"), rows)]
    return "\n\n".join(parts) + "\n"


def _default(field: Any) -> Any:
    return field.default if field.default_factory is NODEFAULT else field.default_factory()


def default(value: Any) -> str:
    """A default as a cell's text; empty for a required setting, and for a default that is empty, off or a table."""
    if any(value is nothing for nothing in (None, False, inspect.Parameter.empty, NODEFAULT)) or isinstance(value, Struct):
        return ""
    return f"`{value}`" if value not in ("", (), [], {}) else ""


def table(head: tuple[str, ...], rows: Any) -> str:
    cells = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in cells)
