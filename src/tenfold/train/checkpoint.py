"""Checkpoints on `torch.distributed.checkpoint` (DCP): one format for every layout, atomic, with checksums; the newest are kept.

    checkpoint/step-00001200/{manifest.json, *.distcp, .metadata}

A checkpoint is written under a temporary name and renamed when it is completely on disk, so that a kill at any moment leaves the
earlier ones intact. Without a process group, one process writes everything. With one, every process writes its own shards to a
file system that all processes share, and the first process writes the manifest. Values are stored by parameter name, not by
process, so any layout can load what another one saved. Checksums detect damage, not tampering: load only checkpoints that you
trust.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import Optimizer

from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import file_sha256
from tenfold.spec.versions import require_version
from tenfold.train import store
from tenfold.train.parallel.processes import on_first_process

VERSION = 2  # of the manifest, and of the `extra` that a run stores in it
LOOK_S = 0.2  # seconds between looks at an upload that is waited for
Optimizers = Optimizer | list[Optimizer]
# By parameter name instead of by parameter group: layouts differ in how they group parameters.
BY_NAME = StateDictOptions(flatten_optimizer_state_dict=True)


def save(directory: Path, step: int, model: nn.Module, optimizer: Optimizers, extra: dict[str, Any], keep: int = 2) -> Path:
    """Write `directory/step-N` with weights, optimizer state and `extra` (JSON values); keep the newest `keep`.

    Model and optimizers do not change. Raises TenfoldError if the disk is full or cannot be written; earlier checkpoints are kept.
    """
    state, unused = _state_of(model, _listed(optimizer))
    return _save(directory, _facts(step, unused, extra), state, keep, None)


def copy_state(model: nn.Module, optimizer: Optimizers) -> None:
    """Make the copy in memory that a save in the background makes, and drop it: its peak is part of what a run needs."""
    stager = DefaultStager(StagingOptions(False, False, False, False))
    stager.stage(_state_of(model, _listed(optimizer))[0])
    stager.close()


class Saver:
    """Saves checkpoints in a background thread: the training loop waits only until the state is copied in memory.

    One save runs at a time. Every process makes a `Saver`, at the same point of the program, because that creates a process group.
    `upload_to` is a folder that fsspec can reach, to which each checkpoint is copied. `beat` is called regularly by whoever waits
    for such a copy, which may take long: a watchdog must not take the wait for a hang.
    """

    def __init__(self, directory: Path, keep: int, upload_to: str | None = None, beat: Callable[[], None] = lambda: None):
        self._directory, self._keep, self._upload_to, self._beat = directory, keep, upload_to, beat
        # Saves have their own process group, so that their messages are not mixed up with those of the training steps.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        pinned = torch.cuda.is_available()
        self._stager = DefaultStager(StagingOptions(pinned, False, False, pinned))
        self._running: threading.Thread | None = None
        self._uploading = False
        self._error: Exception | None = None

    def save(self, step: int, model: nn.Module, optimizer: Optimizers, extra: dict[str, Any]) -> None:
        """Start to save, and return when weights and optimizer state are copied. Raises the error of the previous save, if any."""
        self.finish()
        state, unused = _state_of(model, _listed(optimizer))
        staged = self._stager.stage(state)
        assert isinstance(staged, dict)
        facts = _facts(step, unused, extra)
        # A daemon thread: if another process is lost it may wait for it forever, and must not keep this process alive.
        self._running = threading.Thread(target=self._write, args=(facts, staged), name="checkpoint", daemon=True)
        self._running.start()

    def finish(self) -> None:
        """Wait for the save in progress. Raises TenfoldError if it failed."""
        while self._running is not None and self._running.is_alive():
            self._running.join(LOOK_S)
            if self._uploading:
                self._beat()
        error, self._running, self._error = self._error, None, None
        if error is not None:
            raise error

    def _write(self, facts: dict[str, Any], state: dict[str, Any]) -> None:
        try:
            path = _save(self._directory, facts, state, self._keep, self._group)
            if self._upload_to is not None:
                target = self._upload_to
                self._uploading = True
                on_first_process(lambda: store.upload(path, target, self._keep), self._group)
        except Exception as error:  # `finish` raises it in the training loop
            self._error = error
        finally:
            self._uploading = False

    def close(self) -> None:
        """Wait for the last save and release the buffers. Not to be called after an error: other processes may be gone, and this
        would wait for them forever."""
        self.finish()
        self._stager.close()


def _facts(step: int, unused: list[int], extra: dict[str, Any]) -> dict[str, Any]:
    return {"version": VERSION, "step": step, "unused_optimizers": unused, "extra": extra}


def _save(directory: Path, facts: dict[str, Any], state: dict[str, Any], keep: int, group: Any) -> Path:
    step = facts["step"]
    final, scratch = directory / f"step-{step:08d}", directory / f".step-{step:08d}"
    try:
        on_first_process(lambda: _empty(scratch), group)
        _write(state, scratch, group)
        files = on_first_process(lambda: sorted(file.name for file in scratch.iterdir()), group)
        checksums = _checksums(scratch, files, group)
        on_first_process(lambda: _seal(scratch, final, {**facts, "files": checksums}), group)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise TenfoldError(
            f"The checkpoint of step {step} could not be saved in {directory}: {why}; earlier ones are kept, free some "
            "disk space and resume."
        ) from None
    on_first_process(lambda: _drop(_steps(directory)[: -max(1, keep)]), group)
    return final


def latest(directory: Path) -> Path | None:
    """The newest checkpoint in `directory`, without verifying it; None if there is none."""
    return next(reversed(_steps(directory)), None)


def delete_after(directory: Path, step: int, uploaded_to: str | None = None) -> int | None:
    """Delete the checkpoints after `step`, also from the store that they were `uploaded_to`.

    Returns the step of the newest checkpoint left. If none would be left, none is deleted and None is returned.
    """
    steps = {int(path.name.removeprefix("step-")): path for path in _steps(directory)}
    left = [s for s in steps if s <= step]
    if not left:
        return None
    if uploaded_to is not None:
        store.drop_after(uploaded_to, step)
    _drop([path for s, path in steps.items() if s > step])
    return max(left)


def load(path: Path, model: nn.Module, optimizer: Optimizers) -> dict[str, Any]:
    """Verify the checkpoint `path` and load it into model and optimizers, bit for bit; returns its `extra`.

    An optimizer that had not taken a step when the checkpoint was saved is not in it, and keeps its learning rate. Raises
    TenfoldError if the checkpoint is damaged, or belongs to another model or optimizer.
    """
    manifest = _verified(path)
    if manifest is None:
        raise TenfoldError(f"The checkpoint {path} is damaged: its files do not match their checksums; use an earlier one.")
    return _load(path, manifest, model, _listed(optimizer))


def restore_latest(
    directory: Path,
    model: nn.Module,
    optimizer: Optimizers,
    uploaded_to: str | None = None,
    beat: Callable[[], None] = lambda: None,
) -> dict[str, Any] | None:
    """Load the newest intact checkpoint into model and optimizers; returns its `extra`, or None if there is no checkpoint.

    Damaged checkpoints are skipped with a warning. If the store `uploaded_to` has a newer checkpoint than the intact ones in
    `directory`, it is downloaded first; meanwhile `beat` is called regularly, as in `Saver`. Raises TenfoldError if all checkpoints
    are damaged, or the newest intact one belongs to another model or optimizer. Only the run that trains in `directory` may call
    this, because it removes what an interrupted save left behind.
    """
    _settle(directory)
    if uploaded_to is not None:
        after = _newest_intact(directory)
        with _beating(beat):
            downloaded = on_first_process(lambda: store.download(uploaded_to, directory, after))
        if downloaded:
            _settle(directory)
    candidates = on_first_process(lambda: _steps(directory))
    for path in reversed(candidates):
        manifest = _verified(path)
        if manifest is not None:
            return _load(path, manifest, model, _listed(optimizer))
        warnings.warn(f"The checkpoint {path} is damaged; an earlier one is used.", stacklevel=2)
    if candidates:
        raise TenfoldError(f"Every checkpoint in {directory} is damaged: delete the folder to start the run again.")
    return None


@contextmanager
def _beating(beat: Callable[[], None]) -> Iterator[None]:
    """Call `beat` regularly, in a thread, while the context is open."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(LOOK_S):
            beat()

    threading.Thread(target=go_on, name="beating", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _newest_intact(directory: Path) -> int:
    """The step of the newest checkpoint that is not damaged; -1 where there is none."""
    steps = on_first_process(lambda: _steps(directory))
    return next((int(path.name.removeprefix("step-")) for path in reversed(steps) if _verified(path) is not None), -1)


def _listed(optimizer: Optimizers) -> list[Optimizer]:
    return [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)


def _state_of(model: nn.Module, optimizers: list[Optimizer]) -> tuple[dict[str, Any], list[int]]:
    """The state to save, and the numbers of the optimizers that are left out of it."""
    # An optimizer that has taken no step is left out: PyTorch's get_state_dict would take one to create its state.
    unused = [i for i, o in enumerate(optimizers) if not o.state]
    return _state(model, [o for o in optimizers if o.state]), unused


def _state(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Any]:
    weights, optimizer = get_state_dict(model, optimizers, options=BY_NAME)
    return {"model": weights, "optimizer": optimizer}


def _write(state: dict[str, Any], scratch: Path, group: Any) -> None:
    size = sum(t.nbytes for t in _tensors(state))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            writer = dcp.FileSystemWriter(scratch, sync_files=True)
            dcp.save(state, storage_writer=writer, process_group=group, no_dist=not dist.is_initialized())
    except dcp.api.CheckpointException as error:
        # DCP wraps the original error, and its zip writer reports a full disk as a different one.
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


def _seal(scratch: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest beside the shards, flush everything to disk, and rename the folder to its final name."""
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
    """Rename the temporary folders of interrupted saves that are complete, and delete the others."""
    for scratch in on_first_process(lambda: sorted(directory.glob(".step-*"))):
        whole = _verified(scratch) is not None
        final = directory / scratch.name.removeprefix(".")
        on_first_process(lambda: _promote(scratch, final) if whole else _drop([scratch]))  # noqa: B023


def _empty(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)


def _drop(old: Iterable[Path]) -> None:
    for path in old:
        shutil.rmtree(path, ignore_errors=True)


def _load(path: Path, manifest: dict[str, Any], model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Any]:
    require_version(manifest.get("version", 1), (VERSION,), f"The checkpoint {path}", "train in another directory")
    unused = manifest["unused_optimizers"]
    used = [o for i, o in enumerate(optimizers) if i not in unused]
    try:
        state = _state(model, used)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load(state, checkpoint_id=path, no_dist=not dist.is_initialized())
        set_state_dict(model, used, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=BY_NAME)
    except (dcp.api.CheckpointException, RuntimeError, KeyError, ValueError) as error:
        raise TenfoldError(
            f"The checkpoint {path} does not fit this run's model or optimizer ({_first_line(_cause(error))}): resume "
            "with the settings that it was saved with, or start in another directory."
        ) from None
    for i in unused:
        optimizers[i].state.clear()
    return manifest["extra"]


def read_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Fill `weights`, given by parameter name, from a checkpoint of any layout; for one process, without a process group."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load({"model": weights}, checkpoint_id=path, no_dist=True)
    except (dcp.api.CheckpointException, RuntimeError, KeyError, ValueError, OSError) as error:
        raise TenfoldError(f"The checkpoint {path} does not hold this model ({_first_line(_cause(error))}).") from None


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
    """The manifest of a checkpoint if all its files match their checksums, else None."""
    manifest = on_first_process(lambda: _manifest(path))
    if manifest is None or manifest["files"] != _checksums(path, sorted(manifest["files"]), None):
        return None
    return manifest


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        whole = manifest.pop("sha256") == _sha256_of_json(manifest) and isinstance(manifest["files"], dict)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole else None


def _sha256_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _checksums(folder: Path, files: list[str], group: Any) -> dict[str, str]:
    """The SHA-256 of each file by its name, "" for a file that cannot be read. Every process reads a share of the files."""
    together = dist.is_initialized()
    mine = files[dist.get_rank() :: dist.get_world_size()] if together else files
    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        shares = [dict(zip(mine, pool.map(_sha256, [folder / name for name in mine]), strict=True))]
    if together:
        shares *= dist.get_world_size()
        dist.all_gather_object(shares, shares[0], group=group)
    return {name: digest for share in shares for name, digest in share.items()}


def _sha256(file: Path) -> str:
    try:
        return file_sha256(file)
    except OSError:
        return ""


def _sync(directory: Path) -> None:
    """Flush the directory itself to disk, so that the names of its files survive a loss of power."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
