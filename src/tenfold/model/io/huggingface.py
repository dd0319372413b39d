"""Checkpoints in the layout that every other tool reads: `config.json`, `*.safetensors`, the tokenizer's files.

Names and order of the weights are those of `weights` of the model's family.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tenfold.model.build import make_shapes
from tenfold.model.family import family_of
from tenfold.model.io.format import Slot, Stack
from tenfold.model.io.gguf import gguf_sizes, read_gguf
from tenfold.model.io.huggingface_config import config_from_spec, config_with_vocabulary, spec_from_config
from tenfold.model.io.tokenizer import copy_tokenizer, has_tokenizer
from tenfold.model.llama import Llama
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import whole_folder, write_json
from tenfold.spec.model import ModelSpec

SHARD_BYTES = 4 * 2**30


def write_model(model: Llama, directory: Path, tokenizer_directory: Path | None = None, dtype: torch.dtype = torch.float32) -> None:
    """Write weights in shards of at most 4 GiB, `config.json`, and the tokenizer of a directory or GGUF file."""
    tensors = ((name, slot.get()) for name, slot in slots_of(model).items())
    _write(model.spec, tensors, directory, tokenizer_directory, dtype)


def write_parts(
    spec: ModelSpec, fill: Callable[[str, nn.Module], None], directory: Path, tokenizer_directory: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """Write a model that is never whole in memory: `fill` gets the name of one part after another, and sets its weights.

    A part is a block, or a module beside the blocks; the names are those of `named_parameters`.
    """
    _write(spec, _filled(spec, fill), directory, tokenizer_directory, dtype)


def _filled(spec: ModelSpec, fill: Callable[[str, nn.Module], None]) -> Iterator[tuple[str, Tensor]]:
    for name, part, slots in _parts(spec):
        fill(name, part)
        yield from ((stored, slot.get()) for stored, slot in slots.items())


def _parts(spec: ModelSpec) -> Iterator[tuple[str, nn.Module, dict[str, Slot | Stack]]]:
    """Each part of a model in turn, the only one that has memory then: its name, itself, its weights by Hugging Face's names."""
    model = make_shapes(spec)
    if spec.tied:
        model.head.weight = model.embedding.weight
    parts = [(name, part) for name, part in model.named_children() if name != "blocks" and not (spec.tied and name == "head")]
    for name, part in parts + [(f"blocks.{i}", block) for i, block in enumerate(model.layers)]:
        part.to_empty(device="cpu")
        yield name, part, {stored: slot for stored, slot in slots_of(model).items() if not slot.is_meta}
        part.to("meta")


def slots_of(model: Llama) -> dict[str, Slot | Stack]:
    """Every weight by its Hugging Face name."""
    return family_of(model.spec).weights().slots(model)


def _write(
    spec: ModelSpec, tensors: Iterator[tuple[str, Tensor]], directory: Path, tokenizer_directory: Path | None, dtype: torch.dtype
) -> None:
    with whole_folder(directory, replace=True) as scratch:
        known = tokenizer_directory is not None and has_tokenizer(tokenizer_directory)
        vocabulary = copy_tokenizer(tokenizer_directory, scratch) if tokenizer_directory and known else None
        write_json(scratch / "config.json", config_with_vocabulary(config_from_spec(spec, dtype), vocabulary))
        _write_shards(((name, tensor.to("cpu", dtype).contiguous()) for name, tensor in tensors), scratch)


def _write_shards(tensors: Iterator[tuple[str, Tensor]], directory: Path) -> None:
    """Write shards as they fill; they have their names when their number is known."""
    shards: list[list[str]] = []
    sizes: list[int] = []

    def close(shard: dict[str, Tensor]) -> None:
        _save(shard, directory / f".shard-{len(shards)}")
        shards.append(list(shard))
        sizes.append(sum(t.nbytes for t in shard.values()))

    open_shard: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if open_shard and sum(t.nbytes for t in open_shard.values()) + tensor.nbytes > SHARD_BYTES:
            close(open_shard)
            open_shard = {}
        open_shard[name] = tensor
    close(open_shard)
    if len(shards) == 1:
        (directory / ".shard-0").replace(directory / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f".shard-{i}").replace(directory / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    write_json(directory / "model.safetensors.index.json", index)


def _save(shard: dict[str, Tensor], file: Path) -> None:
    try:
        save_file(shard, file, metadata={"format": "pt"})
        shutil.copymode(file.with_name("config.json"), file)  # as the umask says; `save_file` makes private files
    except SafetensorError as error:
        if found := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(file)) from None
        raise


def read_spec(path: Path) -> ModelSpec:
    """The shape of the model in a Hugging Face directory or a GGUF file."""
    if path.suffix == ".gguf":
        return read_gguf(path)[0]
    config = path / "config.json"
    if not config.exists():
        raise TenfoldError(f"{path} is no model: it has no config.json.")
    try:
        return spec_from_config(json.loads(config.read_text()), path.name)
    except (ValueError, RecursionError):
        raise TenfoldError(f"{config} is not valid JSON.") from None


def check_model(path: Path) -> None:
    """Raises TenfoldError where the shape of a model cannot be that of its weights, by their headers alone."""
    spec = read_spec(path)
    sizes = gguf_sizes(path) if path.suffix == ".gguf" else _sizes(path)
    layers = max(spec.n_layers, spec.vision.n_layers if spec.vision else 0)
    if layers > len(sizes):
        raise TenfoldError(f"{path} is no model: it says that it has {layers} layers, and holds {len(sizes)} tensors.")
    if (weights := spec.parameters().total) > 2 * sum(sizes):
        raise TenfoldError(f"{path} is no model: it says that it has {weights} weights, and holds {sum(sizes)}.")


def _sizes(path: Path) -> list[int]:
    """How many weights each tensor of a Hugging Face directory has."""
    with ExitStack() as opened:
        files = [_open(path / file, opened) for file in _files(path)]
        return [math.prod(stored.get_slice(name).get_shape()) for stored in files for name in stored.keys()]  # noqa: SIM118


def read_model(path: Path, dtype: torch.dtype = torch.float32) -> Llama:
    """The model in a Hugging Face directory or a GGUF file, in `dtype`, tensor by tensor.

    Raises TenfoldError, naming the tensor, where one is missing, too many, or of another shape.
    """
    check_model(path)
    if path.suffix == ".gguf":
        spec, stored = read_gguf(path)
        return assemble(spec, ((name, read()) for name, read in stored.items()), path, dtype)
    return assemble(read_spec(path), _stored(path), path, dtype)


def assemble(spec: ModelSpec, tensors: Iterator[tuple[str, Tensor]], path: Path, dtype: torch.dtype) -> Llama:
    """A model of `spec` from tensors under their Hugging Face names."""
    model = make_shapes(spec)
    model = model.to(dtype).to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.zero_()
    if spec.tied:
        model.head.weight = model.embedding.weight
    slots = slots_of(model)
    for name, tensor in tensors:
        if name.endswith("lm_head.weight") and spec.tied:
            continue
        if name not in slots:
            raise TenfoldError(f"{path} has a tensor {name!r} that a model of this config does not have.")
        _set(slots.pop(name), tensor, name, path)
    if slots:
        raise TenfoldError(f"{path} lacks the tensor {next(iter(slots))!r} ({len(slots)} in all).")
    return model.requires_grad_(True)


def _set(slot: Slot | Stack, tensor: Tensor, name: str, path: Path) -> None:
    if slot.shape != tuple(tensor.shape):
        raise TenfoldError(f"{path}: {name} has shape {tuple(tensor.shape)}, its config says {slot.shape}.")
    slot.set(tensor)


def _stored(path: Path) -> Iterator[tuple[str, Tensor]]:
    for file in _files(path):
        try:
            with safe_open(path / file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 (not a dict)
                    yield name, stored.get_tensor(name)
        except SafetensorError as error:
            raise TenfoldError(f"{path / file} is damaged or cut short: {error}.") from None


def _files(path: Path) -> list[str]:
    index = path / "model.safetensors.index.json"
    try:
        files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise TenfoldError(f"{index} is not an index of weights: download it again.") from None
    for file in files:
        if not (path / file).exists():
            raise TenfoldError(f"{path} lacks {file}: copy the missing shard there.")
    return files


def weights_hash(path: Path) -> str:
    """SHA-256 over the files of the weights in a Hugging Face directory, or of a GGUF file."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def read_parts(path: Path) -> Iterator[tuple[str, nn.Module]]:
    """The model in a Hugging Face directory or GGUF file, never whole in memory: the name and weights of one part after
    another, in float32.

    A part is as in `write_parts`; it is gone when the next is asked for. Raises TenfoldError as `read_model` does.
    """
    yield from ((name, part) for name, part, _ in _read_parts(path))


def read_slots(path: Path) -> Iterator[dict[str, Any]]:
    """The weights of one part after another by their Hugging Face names, as `read_parts` reads them."""
    yield from (slots for _, _, slots in _read_parts(path))


def _read_parts(path: Path) -> Iterator[tuple[str, nn.Module, dict[str, Slot | Stack]]]:
    check_model(path)
    with ExitStack() as opened:
        stored = read_gguf(path)[1] if path.suffix == ".gguf" else _opened(path, opened)
        for name, part, slots in _parts(read_spec(path)):
            for key, slot in slots.items():
                if key not in stored:
                    raise TenfoldError(f"{path} lacks the tensor {key!r}.")
                _set(slot, stored[key](), key, path)
            yield name, part, slots


def _opened(path: Path, opened: ExitStack) -> dict[str, Callable[[], Tensor]]:
    """For the name of each stored tensor a function that reads it, from files that are open as long as `opened`."""
    found: dict[str, Callable[[], Tensor]] = {}
    for file in _files(path):
        stored = _open(path / file, opened)
        found |= {name: partial(stored.get_tensor, name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    return found


def _open(file: Path, opened: ExitStack) -> Any:
    """A file of weights, which is open as long as `opened`."""
    try:
        return opened.enter_context(safe_open(file, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise TenfoldError(f"{file} is damaged or cut short: {error}.") from None
