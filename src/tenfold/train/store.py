"""Copies of checkpoints in any store that fsspec can reach (`s3://bucket/run`, `gs://`, a folder)."""

import re
import shutil
from pathlib import Path
from typing import Any

from tenfold.spec.errors import TenfoldError


def upload(checkpoint: Path, target: str, keep: int) -> None:
    """Copy a checkpoint to `target` and keep the newest `keep` there. Raises TenfoldError if the store reports an error.

    The manifest is copied last, so that a folder without one is known to be incomplete.
    """
    try:
        files, root = _open(target)
        for file in sorted(checkpoint.iterdir(), key=lambda file: file.name == "manifest.json"):
            files.makedirs(f"{root}/{checkpoint.name}", exist_ok=True)
            files.put_file(str(file), f"{root}/{checkpoint.name}/{file.name}")
        for old in _steps(files, root)[: -max(1, keep)]:
            files.rm(f"{root}/{old}", recursive=True)
    except Exception as error:  # every store has errors of its own
        raise TenfoldError(f"The checkpoint {checkpoint.name} could not be copied to {target}: {_said(error)}.") from None


def download(target: str, directory: Path, after: int) -> bool:
    """Download the newest checkpoint after step `after` to `directory/.step-N`, where the caller must verify it.

    Returns whether there was one. Raises TenfoldError if the store cannot be read.
    """
    try:
        files, root = _open(target)
        newer = [name for name in _steps(files, root) if int(name.removeprefix("step-")) > after]
        for name in reversed(newer):
            if files.exists(f"{root}/{name}/manifest.json"):
                scratch = directory / f".{name}"
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir(parents=True)
                for file in files.ls(f"{root}/{name}", detail=False):
                    files.get_file(file, str(scratch / Path(file).name))
                return True
        return False
    except Exception as error:
        raise TenfoldError(f"The checkpoints in {target} could not be read: {_said(error)}.") from None


def drop_after(target: str, step: int) -> None:
    """Delete the checkpoints after `step`. Raises TenfoldError if the store reports an error."""
    try:
        files, root = _open(target)
        for name in _steps(files, root):
            if int(name.removeprefix("step-")) > step:
                files.rm(f"{root}/{name}", recursive=True)
    except Exception as error:
        raise TenfoldError(f"The checkpoints in {target} could not be deleted: {_said(error)}.") from None


def _open(target: str) -> tuple[Any, str]:
    import fsspec

    return fsspec.core.url_to_fs(target)


def _steps(files: Any, root: str) -> list[str]:
    files.invalidate_cache()
    names = [path.rstrip("/").rsplit("/", 1)[-1] for path in files.ls(root, detail=False)] if files.exists(root) else []
    return sorted((name for name in names if re.fullmatch(r"step-\d+", name)), key=lambda name: int(name.removeprefix("step-")))


def _said(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
