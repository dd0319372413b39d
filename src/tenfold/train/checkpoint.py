"""Checkpoints on `torch.distributed.checkpoint`: atomic, checked by checksum, the last few kept.

    checkpoint/step-00001200/{manifest.json, *.distcp, .metadata}

A checkpoint is written beside its final name and renamed when all of it is on disk, so that a kill at any moment
leaves the ones before it whole. Without a process group one process writes all; with one (on a file system that all
processes share) each writes its own shards, and the first seals them. Checksums find damage, not malice: load only
checkpoints that you trust.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from tenfold.spec.errors import TenfoldError

T = TypeVar("T")
Optimisers = Optimizer | list[Optimizer]


def save(
    directory: Path, step: int, model: nn.Module, optimiser: Optimisers, extra: dict[str, Any], keep: int = 2
) -> Path:
    """Write `directory/step-N` with weights, optimiser state and `extra` (JSON values); keep the newest `keep`.

    Training is not disturbed: not a bit of model or optimisers changes. Raises TenfoldError where the disk is full or
    cannot be written; earlier checkpoints then stay.
    """
    final, scratch = directory / f"step-{step:08d}", directory / f".step-{step:08d}"
    optimisers = _listed(optimiser)
    # An optimiser that has not stepped is left out: asking PyTorch for its state would step it, and so count one.
    unused = [i for i, o in enumerate(optimisers) if not o.state]
    used = [o for o in optimisers if o.state]
    try:
        _on_first_process(lambda: _empty(scratch))
        _write(_state(model, used), scratch)
        _on_first_process(lambda: _seal(scratch, final, {"step": step, "unused_optimisers": unused, "extra": extra}))
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise TenfoldError(
            f"The checkpoint of step {step} could not be saved in {directory}: {why}; earlier ones are kept, free some "
            "room and resume."
        ) from None
    _on_first_process(lambda: _drop(_steps(directory)[: -max(1, keep)]))
    return final


def latest(directory: Path) -> Path | None:
    """The newest checkpoint in `directory`, not verified; None where there is none."""
    return next(reversed(_steps(directory)), None)


def load(path: Path, model: nn.Module, optimiser: Optimisers) -> dict[str, Any]:
    """Verify the checkpoint `path` and load it into model and optimisers, to the bit; returns its `extra`.

    The learning rate of an optimiser that had not stepped is not in the checkpoint and stays as it is. Raises
    TenfoldError where the checkpoint is damaged or belongs to another model or optimiser.
    """
    manifest = _on_first_process(lambda: _verified(path))
    if manifest is None:
        raise TenfoldError(f"The checkpoint {path} is damaged: its files do not match their checksums; use an earlier one.")
    return _load(path, manifest, model, _listed(optimiser))


def restore_latest(directory: Path, model: nn.Module, optimiser: Optimisers) -> dict[str, Any] | None:
    """Load the newest whole checkpoint into model and optimisers; returns its `extra`, or None where there is none.

    A damaged one is passed over with a warning. Raises TenfoldError where all are damaged, or where the newest whole
    one belongs to another model or optimiser. Only the process that trains in `directory` may call it, for it clears
    away what an interrupted save left.
    """
    _on_first_process(lambda: _settle(directory))
    candidates = _on_first_process(lambda: _steps(directory))
    for path in reversed(candidates):
        manifest = _on_first_process(lambda path=path: _verified(path))  # type: ignore[misc]
        if manifest is not None:
            return _load(path, manifest, model, _listed(optimiser))
        warnings.warn(f"The checkpoint {path} is damaged; an earlier one is used.", stacklevel=2)
    if candidates:
        raise TenfoldError(f"Every checkpoint in {directory} is damaged: delete the folder to start the run again.")
    return None


def _listed(optimiser: Optimisers) -> list[Optimizer]:
    return [optimiser] if isinstance(optimiser, Optimizer) else list(optimiser)


def _state(model: nn.Module, optimisers: list[Optimizer]) -> dict[str, Any]:
    weights, optimiser = get_state_dict(model, optimisers)
    return {"model": weights, "optimiser": optimiser}


def _write(state: dict[str, Any], scratch: Path) -> None:
    size = sum(t.nbytes for t in _tensors(state))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            writer = dcp.FileSystemWriter(scratch, sync_files=True)
            dcp.save(state, storage_writer=writer, no_dist=not dist.is_initialized())
    except dcp.api.CheckpointException as error:
        # The engine wraps what went wrong in its own exception, and its zip writer hides a full disk in another.
        cause = _cause(error)
        if isinstance(cause, OSError):
            raise cause from None
        if shutil.disk_usage(scratch).free < size:
            raise OSError(errno.ENOSPC, "the disk is full") from None
        raise OSError(errno.EIO, _first_line(cause)) from None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)


def _seal(scratch: Path, final: Path, facts: dict[str, Any]) -> None:
    """Put the manifest beside the shards, see that all of it is on disk, and give it its final name."""
    manifest = {**facts, "files": _sha256_of_all(sorted(scratch.iterdir()))}
    with (scratch / "manifest.json").open("w") as stream:
        json.dump({**manifest, "sha256": _sha256_of_json(manifest)}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    _sync(scratch)
    _promote(scratch, final)


def _promote(scratch: Path, final: Path) -> None:
    shutil.rmtree(final, ignore_errors=True)
    scratch.replace(final)
    _sync(final.parent)


def _settle(directory: Path) -> None:
    """Finish a save that a kill interrupted just before its rename, and drop one that it interrupted earlier."""
    for scratch in directory.glob(".step-*"):
        if _verified(scratch) is not None:
            _promote(scratch, directory / scratch.name.removeprefix("."))
        else:
            shutil.rmtree(scratch, ignore_errors=True)


def _empty(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)


def _drop(old: Iterable[Path]) -> None:
    for path in old:
        shutil.rmtree(path, ignore_errors=True)


def _load(path: Path, manifest: dict[str, Any], model: nn.Module, optimisers: list[Optimizer]) -> dict[str, Any]:
    unused = manifest["unused_optimisers"]
    used = [o for i, o in enumerate(optimisers) if i not in unused]
    try:
        state = _state(model, used)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load(state, checkpoint_id=path, no_dist=not dist.is_initialized())
        set_state_dict(model, used, model_state_dict=state["model"], optim_state_dict=state["optimiser"])
    except (dcp.api.CheckpointException, RuntimeError, KeyError, ValueError) as error:
        raise TenfoldError(
            f"The checkpoint {path} does not fit this run's model or optimiser ({_first_line(_cause(error))}): resume "
            "with the settings that it was saved with, or start in another directory."
        ) from None
    for i in unused:
        optimisers[i].state.clear()
    return manifest["extra"]


def _cause(error: BaseException) -> BaseException:
    if isinstance(error, dcp.api.CheckpointException):
        return next((cause for cause, _ in error.failures.values()), error)
    return error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def _steps(directory: Path) -> list[Path]:
    found = [path for path in directory.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _verified(path: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint whose every file is what it was when it was saved, else None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        digest, files = manifest.pop("sha256"), manifest["files"]
        whole = digest == _sha256_of_json(manifest) and files == _sha256_of_all([path / name for name in files])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole else None


def _sha256_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _sha256_of_all(files: list[Path]) -> dict[str, str]:
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter's lock
        return dict(zip([file.name for file in files], pool.map(_sha256, files), strict=True))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(directory: Path) -> None:
    """See that the names in `directory`, too, survive a loss of power."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _on_first_process(work: Callable[[], T]) -> T:
    """Do `work` in the first process and give its result, or its error, to all."""
    if not dist.is_initialized():
        return work()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except Exception as error:  # whatever it is, the others must not wait for it
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
