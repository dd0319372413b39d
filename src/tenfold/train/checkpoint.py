"""Checkpoints on `torch.distributed.checkpoint`: atomic, checked by checksum, the last few kept.

    checkpoint/step-00001200/{manifest.json, *.distcp, .metadata}

A checkpoint is written beside its final name and renamed when all of it is on disk, so that a kill at any moment
leaves the ones before it whole.
"""

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from tenfold.spec.errors import TenfoldError


def save(directory: Path, step: int, model: nn.Module, optimisers: list[Optimizer], extra: dict, keep: int) -> Path:
    """Write `directory/step-N` with weights, optimiser state and `extra` (JSON values); keep the newest `keep`.

    Raises TenfoldError where the disk is full or cannot be written; earlier checkpoints then stay.
    """
    final = directory / f"step-{step:08d}"
    scratch = directory / f".step-{step:08d}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        _write(_state(model, optimisers), scratch)
        files = {file.name: _sha256(file) for file in sorted(scratch.iterdir())}
        with (scratch / "manifest.json").open("w") as stream:
            json.dump({"step": step, "files": files, "extra": extra}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        shutil.rmtree(final, ignore_errors=True)
        scratch.replace(final)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise TenfoldError(
            f"The checkpoint of step {step} could not be saved in {directory}: {why}; earlier ones are kept, free some "
            "room and resume."
        ) from None
    for old in _steps(directory)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def restore_latest(directory: Path, model: nn.Module, optimisers: list[Optimizer]) -> dict | None:
    """Load the newest whole checkpoint into model and optimisers; returns its `extra`, or None where there is none.

    A damaged one is passed over with a warning. Raises TenfoldError where all are damaged or belong to another model.
    """
    candidates = _steps(directory)
    for path in reversed(candidates):
        manifest = _verified(path)
        if manifest is None:
            warnings.warn(f"The checkpoint {path} is damaged; an earlier one is used.", stacklevel=2)
            continue
        _load(path, model, optimisers)
        return manifest["extra"]
    if candidates:
        raise TenfoldError(f"Every checkpoint in {directory} is damaged: delete the folder to start the run again.")
    return None


def _state(model: nn.Module, optimisers: list[Optimizer]) -> dict[str, Any]:
    weights, optimiser = get_state_dict(model, optimisers)
    return {"model": weights, "optimiser": optimiser}


def _write(state: dict[str, Any], scratch: Path) -> None:
    size = sum(t.nbytes for t in _tensors(state))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.save(state, storage_writer=dcp.FileSystemWriter(scratch, sync_files=True), no_dist=True)
    except dcp.api.CheckpointException as error:
        # The engine wraps what went wrong in its own exception, and its zip writer hides a full disk in another.
        for cause, _ in error.failures.values():
            if isinstance(cause, OSError):
                raise cause from None
        if shutil.disk_usage(scratch).free < size:
            raise OSError(errno.ENOSPC, "the disk is full") from None
        raise


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)


def _load(path: Path, model: nn.Module, optimisers: list[Optimizer]) -> None:
    state = _state(model, optimisers)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load(state, checkpoint_id=path, no_dist=True)
        set_state_dict(model, optimisers, model_state_dict=state["model"], optim_state_dict=state["optimiser"])
    except (dcp.api.CheckpointException, RuntimeError, KeyError, ValueError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise TenfoldError(f"The checkpoint {path} does not fit this run's model or optimiser ({first}).") from None


def _steps(directory: Path) -> list[Path]:
    return sorted(directory.glob("step-*")) if directory.exists() else []


def _verified(path: Path) -> dict | None:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        whole = all(_sha256(path / name) == digest for name, digest in manifest["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return manifest if whole else None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
