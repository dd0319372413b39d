"""Read, check and write run files (`run.toml`). Settings that a run file leaves out are derived from the compute.

An example:

    flops = 1e15
    [model]
    width = 256
    [data]
    corpus = "texts"
    [optimizer]
    name = "adamw"
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import tomli_w
from msgspec import Struct

from tenfold.spec.errors import TenfoldError, nearest
from tenfold.spec.files import reason, write_text
from tenfold.spec.layout import Layout
from tenfold.spec.ranges import as_key, convert, require
from tenfold.spec.versions import require_version
from tenfold.train.config import VERSION, RunConfig
from tenfold.train.contradictions import check

# The keys of run files of version 1, which had no tables, and the setting of this version that each corresponds to.
MOVED = {
    **{key: f"data.{key}" for key in ("corpus", "mixture", "vocab_size", "seq_len", "batch_size", "max_epochs", "cache_gib")},
    **{key: f"optimizer.{key}" for key in ("learning_rate", "weight_decay", "beta2", "schedule", "warmup", "decay")},
    "max_skipped": "optimizer.max_skipped", "tensorboard": "log.tensorboard", "wandb": "log.wandb",
    "optimiser": "optimizer.name", "clip": "optimizer.max_grad_norm", "pictures": "data.images",
    "picture_share": "data.image_share", "start_from": "init_from", "vision": "model.vision", "layout": "parallel",
    "micro_batch": "parallel.micro_batch", "recompute": "parallel.activation_checkpointing", "z_loss": "task.z_loss",
    "ahead": "task.mtp", "ahead_weight": "task.mtp_weight", "balance": "task.load_balancing",
    "balance_rate": "task.load_balancing_rate", "evaluate_every": "task.evaluate_every",
    "evaluate_tokens": "task.evaluate_tokens", "log_every": "log.every", "checkpoint_every_s": "checkpoint.every_s",
    "keep": "checkpoint.keep_last", "upload_to": "checkpoint.upload_to", "hang_after_s": "health.hang_after_s",
    "replay_every": "health.sdc_check_every", "rollback_above": "health.loss_spike",
}  # fmt: skip

# Fields of a Layout that the table [parallel] cannot give, and why or where they are given instead.
ELSEWHERE = {
    "global_batch": "write batch_size in [data]", "seq_len": "write it in [data]", "dtype": "write it above all tables",
    "zero": "the trainer always shards parameters (ZeRO-3)", "etp": "the trainer does not split single experts",
}  # fmt: skip


def read_config(path: Path | None, changes: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a run file. `changes` override its settings, table by table; with `path` None they are all the settings.

    Raises TenfoldError for a missing file, invalid TOML, an unknown key (with the nearest known one) or an invalid value.
    """
    try:
        fields = {} if path is None else tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise TenfoldError(f"There is no run file {path}.") from None
    except OSError as error:
        raise TenfoldError(f"The run file {path} could not be read: {reason(error)}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TenfoldError(f"{path} is not valid TOML: {error}.") from None
    return config_from_fields(_changed(fields, changes or {}), "The run" if path is None else str(path))


def _changed(fields: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    tables = {k: _changed(fields[k], v) for k, v in changes.items() if isinstance(v, dict) and isinstance(fields.get(k), dict)}
    return {**fields, **changes, **tables}


def config_from_fields(fields: dict[str, Any], where: str) -> RunConfig:
    """A RunConfig from plain values. Raises TenfoldError that names `where` and the wrong key."""
    require_version(fields.get("version", VERSION), (1, VERSION), where, "write its settings as `tenfold train --help` lists them")
    _check_keys(fields, RunConfig, where)
    for key in ELSEWHERE:
        if isinstance(fields.get("parallel"), dict) and key in fields["parallel"]:
            raise TenfoldError(f"{where}, table [parallel], cannot give {key}: {ELSEWHERE[key]}.")
    for name, table in _tables().items():
        if isinstance(fields.get(name), dict):
            _check_keys(fields[name], table, f"{where}, table [{name}],")
    config = convert(fields, RunConfig, where)
    require(config.task.get("name", ""), str, f"{where}: name in the table [task]")
    check(config, where)
    return config


T = TypeVar("T", bound=Struct)


def task_settings(config: RunConfig, table: type[T]) -> T:
    """The table `[task]` as a task's own struct. Raises TenfoldError for an unknown key or an invalid value."""
    _check_keys(config.task, table, "The table [task]")
    return convert(config.task, table, "The table [task]")


def write_config(config: RunConfig, path: Path) -> None:
    """Write all settings that are not `None` as TOML."""
    fields = _without_none(msgspec.to_builtins(config))
    if isinstance(fields["parallel"], dict):
        fields["parallel"] = {key: value for key, value in fields["parallel"].items() if key not in ELSEWHERE}
    write_text(path, tomli_w.dumps(fields))


def _tables() -> dict[str, type[Struct]]:
    tables = {f.name: f.type for f in msgspec.structs.fields(RunConfig) if isinstance(f.type, type) and issubclass(f.type, Struct)}
    return {**tables, "parallel": Layout}


def _check_keys(fields: dict[str, Any], table: type[Struct], where: str) -> None:
    known = table.__struct_fields__
    for key, value in fields.items():
        if table is RunConfig and key in MOVED and (key not in known or not isinstance(value, dict | str)):
            raise TenfoldError(f"{where} gives {key}, which is {_moved(key)}: write it there.")
        if key not in known:
            raise TenfoldError(f"{where} has no setting {key!r}{nearest(key, [*known, *_everywhere()])}.")


def _moved(key: str) -> str:
    return as_key(MOVED[key]) if "." in MOVED[key] else f"called {MOVED[key]}"


def _everywhere() -> list[str]:
    return [f"{name}.{key}" for name, table in _tables().items() for key in table.__struct_fields__]


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value
