"""The identity of a run: its settings at its first start, with everything derived, stored in its directory as `identity.json`.

Every later start is compared with it, under a lock and before anything is written. A setting that differs is refused, unless it
is in `MAY_CHANGE`; then the change is recorded in `run.jsonl` as the event "changed". A run that has not saved anything yet may
start again with other settings.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from msgspec.structs import replace

import tenfold
from tenfold.data.text.sources import NAMED
from tenfold.model.io.tokenizer import has_tokenizer, tokenizer_hash
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import make_folder, one_at_a_time, write_json
from tenfold.spec.strict_json import finite
from tenfold.spec.versions import read_document
from tenfold.train.config import RunConfig, defaults
from tenfold.train.lock import LOCK
from tenfold.train.parallel.processes import on_first_process
from tenfold.train.resolve import resolve
from tenfold.train.result import read_result
from tenfold.train.run_file import read_config
from tenfold.train.task import Task

FILE = "identity.json"
VERSION = 1
# Settings, and tables of settings, that may differ when a run is resumed. `tokens` may also grow: from then on the schedule is that
# of the new total, while batch size, learning rates and weight decay remain those of the first start. Corpora may be moved, because
# their contents are compared as `content`.
MAY_CHANGE = (
    "device", "compile", "threads", "parallel", "checkpoint", "log", "health", "software", "task.evaluate_every",
    "data.corpus", "data.images", "data.cache_gib", "data.max_epochs", "optimizer.max_skipped",
)  # fmt: skip
DERIVED = {"data": ("batch_size",), "optimizer": ("learning_rate", "weight_decay", "beta2")}
SHOWN = 6  # most differences that an error message lists


class Identity(NamedTuple):
    """`config` is the run file of this start, `settings` are its settings with everything derived, and `changed` are those that
    differ from the first start, each as [before, after]."""

    config: RunConfig
    settings: dict[str, Any]
    changed: dict[str, list[Any]]


@contextmanager
def only_training(directory: Path) -> Iterator[None]:
    """Hold the lock of `directory`, so that no other run trains in it; the first process holds it for all processes of a run.

    Raises TenfoldError, with the process that holds the lock, if another run trains there.
    """
    with ExitStack() as held:
        on_first_process(lambda: _hold(directory, held))
        yield


def _hold(directory: Path, held: ExitStack) -> None:
    lock = make_folder(directory) / LOCK
    held.enter_context(one_at_a_time(lock, f"training in {directory}"))


def identify(task: Task, config: RunConfig, directory: Path) -> Identity:
    """The identity of a run of `config` in `directory`. Writes nothing.

    Raises TenfoldError with the differences if the run in `directory` was started with other settings that may not change.
    """
    config = with_absolute_paths(config)
    before = _begun(directory, config)
    if before is not None and config.dtype == "auto":
        config = replace(config, dtype=before["dtype"])
    settings = _settings(task, config)
    config = replace(config, dtype=settings["dtype"])
    if before is None and _has_saved(directory, config) and (directory / "run.toml").exists():  # a run without identity.json
        before = _settings(task, with_absolute_paths(read_config(directory / "run.toml")))
    changed = {} if before is None else _differences(before, settings, _defaults(task))
    refused = {key: values for key, values in changed.items() if not _may_change(key, *values)}
    if refused:
        raise TenfoldError(
            f"The run in {directory} was begun with other settings ({_listed(refused)}): resume it with those, or train in "
            "another directory (--out)."
        )
    return Identity(config, settings, changed)


def freeze(identity: Identity, directory: Path) -> None:
    """Write the settings of a run for its later starts. Raises TenfoldError if the directory cannot be written."""
    write_json(directory / FILE, {"version": VERSION, "settings": identity.settings})


def as_begun(config: RunConfig, directory: Path) -> RunConfig:
    """`config` with absolute paths; settings that it leaves to be derived are those that the run in `directory` was started with.

    So a run that is given more tokens keeps its batch size and learning rate, and a run that moves to another machine keeps its
    number format.
    """
    config = with_absolute_paths(config)
    before = _begun(directory, config)
    if before is None:
        return config
    for table, keys in DERIVED.items():
        given = getattr(config, table)
        left = {key: before[f"{table}.{key}"] for key in keys if getattr(given, key) is None}
        config = replace(config, **{table: replace(given, **left)})
    return replace(config, dtype=before["dtype"]) if config.dtype == "auto" else config


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """`config` with every existing path made absolute, so that the run can be resumed from any folder. Names and URLs stay."""
    data, store = config.data, config.checkpoint.upload_to
    if store is not None and "://" not in store:  # a folder, which need not exist yet
        store = str(Path(store).expanduser().absolute())
    mixture = data.mixture and [replace(m, corpus=_absolute(m.corpus), name=m.name or Path(m.corpus).name) for m in data.mixture]
    task = {key: _absolute(value) if key != "name" and _looks_like_a_path(value) else value for key, value in config.task.items()}
    return replace(
        config,
        law=_absolute(config.law),
        init_from=_absolute(config.init_from),
        task=task,
        data=replace(data, corpus=_absolute(data.corpus), images=_absolute(data.images), mixture=mixture),
        checkpoint=replace(config.checkpoint, upload_to=store),
    )


def _looks_like_a_path(value: Any) -> bool:
    return isinstance(value, str) and ("/" in value or "." in value)


def _absolute(name: Any) -> Any:
    path = Path(name or "").expanduser()
    if name is None or "://" in name or not path.exists() or (name in NAMED and not (path / "manifest.json").exists()):
        return name
    return str(path.absolute())


def _begun(directory: Path, config: RunConfig) -> dict[str, Any] | None:
    """The settings that the run in `directory` was started with; None if it has saved nothing that a start would resume."""
    if not (directory / FILE).exists() or not _has_saved(directory, config):
        return None
    return read_document(directory / FILE, VERSION, "train in another directory")["settings"]


def _has_saved(directory: Path, config: RunConfig) -> bool:
    saved = any((directory / "checkpoint").glob("*step-*")) or config.checkpoint.upload_to is not None
    return saved or read_result(directory) is not None


def _settings(task: Task, config: RunConfig) -> dict[str, Any]:
    """The settings of `config` with everything derived, by dotted names. Settings that only serve to derive others (flops, law,
    vocab_size, the paths of a mixture) are left out."""
    resolved = resolve(config, task.vocab_size)
    h, given = resolved.h, msgspec.to_builtins(config)
    for key in ("version", "flops", "law"):
        del given[key]
    mixture = [[m.name, m.weight] for m in config.data.mixture or []]
    fields = {
        **given,
        "tokens": resolved.tokens,
        "dtype": str(resolved.dtype).removeprefix("torch."),
        "model": {key: value for key, value in asdict(resolved.spec).items() if key != "name"},
        "task": config.task,
        "data": {key: value for key, value in given["data"].items() if key != "vocab_size"}
        | {"mixture": mixture, "batch_size": h.batch_size},
        "optimizer": {**given["optimizer"], **{key: getattr(h, key) for key in DERIVED["optimizer"]}},
        "content": task.fingerprint(),
        "tokenizer": tokenizer_hash(task.directory) if has_tokenizer(task.directory) else None,
        "software": {"tenfold": tenfold.__version__, "torch": torch.__version__},
    }
    return finite(_flat(fields))


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _defaults(task: Task) -> dict[str, Any]:
    """The default of every setting, for those that the `identity.json` of another version of Tenfold lacks."""
    of_task = {} if task.settings is None else defaults(type(task.settings))
    return finite(_flat(msgspec.to_builtins({**defaults(RunConfig), "task": {"name": "pretrain", **of_task}})))


def _differences(before: dict[str, Any], after: dict[str, Any], left_out: dict[str, Any]) -> dict[str, list[Any]]:
    """Every setting that differs between two starts, as [before, after]; `left_out` has the values of settings that one lacks."""
    values = {key: [of.get(key, left_out.get(key)) for of in (before, after)] for key in before | after}
    return {key: [was, is_] for key, (was, is_) in values.items() if was != is_}


def _may_change(key: str, before: Any, after: Any) -> bool:
    if key == "tokens":
        return after > before
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in MAY_CHANGE)


def _listed(differences: dict[str, list[Any]]) -> str:
    lines = [f"{key} was {_shown(before)} and is {_shown(after)}" for key, (before, after) in differences.items()]
    more = [f"{len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "; ".join([*lines[:SHOWN], *more])


def _shown(value: Any) -> str:
    return "not given" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)[:60]
