"""Read the tensors of a Hugging Face directory by name, from safetensors or from PyTorch's older pickled files."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tenfold.spec.errors import TenfoldError

_NAMES = ("model.safetensors", "pytorch_model.bin")


class Stored(NamedTuple):
    """A tensor in a file: its shape, and a function that reads it."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@contextmanager
def open_directory(path: Path) -> Iterator[dict[str, Stored]]:
    """The tensors of a directory, which can be read within the context. Raises TenfoldError for damaged or missing files."""
    with ExitStack() as opened:
        found: dict[str, Stored] = {}
        for file in map(path.joinpath, _files(path)):
            found |= _pickled(file) if file.suffix == ".bin" else _safetensors(file, opened)
        yield found


def _files(path: Path) -> list[str]:
    for name in _NAMES:
        index = path / f"{name}.index.json"
        if index.exists() or (path / name).exists():
            break
    else:
        name, index = _NAMES[0], path / f"{_NAMES[0]}.index.json"
    try:
        files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else [name]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise TenfoldError(f"{index} is not a valid index of weight files: download it again.") from None
    for file in files:
        if Path(file).name != file:
            raise TenfoldError(f"{index} names {file!r}, which is not the name of a file in its folder: download it again.")
        if not (path / file).exists():
            raise TenfoldError(f"{path} lacks {file}: copy the missing shard there.")
    return files


def _safetensors(file: Path, opened: ExitStack) -> dict[str, Stored]:
    try:
        stored: Any = opened.enter_context(safe_open(file, framework="pt"))
        names = stored.keys()
        return {name: Stored(tuple(stored.get_slice(name).get_shape()), partial(stored.get_tensor, name)) for name in names}
    except (SafetensorError, OSError) as error:
        raise TenfoldError(f"{file} is damaged or cut short: {error}.") from None


def _pickled(file: Path) -> dict[str, Stored]:
    """The tensors in a file of `torch.save`; unpickling allows tensors only."""
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except Exception as error:  # a pickle may fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise TenfoldError(f"{file} is damaged, or holds more than tensors: {reason}.") from None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise TenfoldError(f"{file} is not a dictionary of tensors by name: give the model's safetensors.")
    return {name: Stored(tuple(tensor.shape), partial(_same, tensor)) for name, tensor in tensors.items()}


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _is_zip(file: Path) -> bool:
    """Whether the file has the zip format of PyTorch 1.6 and later, whose tensors can be memory-mapped."""
    with file.open("rb") as stream:
        return stream.read(2) == b"PK"


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a safetensors file with the permissions that the umask gives; `save_file` makes it readable by its owner only."""
    file.touch()
    mode = file.stat().st_mode
    try:
        save_file(tensors, file, metadata={"format": "pt"})
        file.chmod(mode)
    except SafetensorError as error:
        if found := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(file)) from None
        raise
