"""Read and write checkpoints in Hugging Face layout (`config.json`, `*.safetensors`, the tokenizer's files); read GGUF files too.

The names and shapes of the stored weights come from `Family.weights` of the model's family.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tenfold.model.build import make_shapes
from tenfold.model.family import family_of
from tenfold.model.io.format import Slot, Stack
from tenfold.model.io.gguf import read_gguf
from tenfold.model.io.huggingface_config import config_from_spec, config_with_vocabulary, spec_from_config
from tenfold.model.io.stored import Stored, open_directory, save_tensors
from tenfold.model.io.tokenizer import copy_tokenizer, has_tokenizer
from tenfold.model.llama import Llama, rope_frequencies
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import atomic_folder, write_json
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
    """Write a model part by part, so that it is never all in memory: `fill` is called with the name and module of each part, and
    sets its weights.

    A part is a block or another direct child of the model; its name is as in `named_modules`.
    """
    _write(spec, _filled(spec, fill), directory, tokenizer_directory, dtype)


def _filled(spec: ModelSpec, fill: Callable[[str, nn.Module], None]) -> Iterator[tuple[str, Tensor]]:
    for name, part, slots in _parts(spec):
        fill(name, part)
        yield from ((stored, slot.get()) for stored, slot in slots.items())


def _parts(spec: ModelSpec) -> Iterator[tuple[str, nn.Module, dict[str, Slot | Stack]]]:
    """The parts of a model, one after another: name, module, and weights by their Hugging Face names.

    The module has memory, not initialized, only until the next part is asked for.
    """
    model = make_shapes(spec)
    if spec.tied:
        model.head.weight = model.embedding.weight
    parts = [(name, part) for name, part in model.named_children() if name != "blocks" and not (spec.tied and name == "head")]
    for name, part in parts + [(f"blocks.{i}", block) for i, block in enumerate(model.layers)]:
        part.to_empty(device="cpu")
        yield name, part, {stored: slot for stored, slot in slots_of(model).items() if not slot.is_meta}
        part.to("meta")


def slots_of(model: Llama) -> dict[str, Slot | Stack]:
    """Every weight of a model by its Hugging Face name."""
    return family_of(model.spec).weights().slots(model)


def _write(
    spec: ModelSpec, tensors: Iterator[tuple[str, Tensor]], directory: Path, tokenizer_directory: Path | None, dtype: torch.dtype
) -> None:
    with atomic_folder(directory, replace=True) as scratch:
        known = tokenizer_directory is not None and has_tokenizer(tokenizer_directory)
        vocabulary = copy_tokenizer(tokenizer_directory, scratch) if tokenizer_directory and known else None
        write_json(scratch / "config.json", config_with_vocabulary(config_from_spec(spec, dtype), vocabulary))
        _write_shards(((name, tensor.to("cpu", dtype).contiguous()) for name, tensor in tensors), scratch)


def _write_shards(tensors: Iterator[tuple[str, Tensor]], directory: Path) -> None:
    """Write each shard when it is full. Shards get their names at the end, because the names contain the number of shards."""
    shards: list[list[str]] = []
    sizes: list[int] = []

    def close(shard: dict[str, Tensor]) -> None:
        save_tensors(shard, directory / f".shard-{len(shards)}")
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


def read_spec(path: Path) -> ModelSpec:
    """The spec of the model in a Hugging Face directory or a GGUF file. Raises TenfoldError if it cannot be read."""
    if path.suffix == ".gguf":
        return read_gguf(path)[0]
    config = path / "config.json"
    if not config.exists():
        raise TenfoldError(f"{path} is not a model: it has no config.json.")
    try:
        return spec_from_config(json.loads(config.read_text()), path.name)
    except (ValueError, RecursionError):
        raise TenfoldError(f"{config} is not valid JSON.") from None


def check_model(path: Path) -> None:
    """Raises TenfoldError if a model's config describes far more weights than its files hold; reads only their headers."""
    with _open(path) as (spec, stored):
        _require_weights(path, spec, stored)


@contextmanager
def _open(path: Path) -> Iterator[tuple[ModelSpec, dict[str, Stored]]]:
    """The spec of a Hugging Face directory or a GGUF file, and its tensors by their Hugging Face names."""
    if path.suffix == ".gguf":
        yield read_gguf(path)
        return
    spec = read_spec(path)
    with open_directory(path) as stored:
        yield spec, stored


def _require_weights(path: Path, spec: ModelSpec, stored: dict[str, Stored]) -> None:
    layers = max(spec.n_layers, spec.vision.n_layers if spec.vision else 0)
    if layers > len(stored):
        raise TenfoldError(f"{path} is not a model: its config says {layers} layers, and it holds {len(stored)} tensors.")
    held = sum(math.prod(tensor.shape) for tensor in stored.values())
    if (weights := spec.parameters().total) > 2 * held:
        raise TenfoldError(f"{path} is not a model: its config says {weights} weights, and it holds {held}.")


def read_model(path: Path, dtype: torch.dtype = torch.float32) -> Llama:
    """The model in a Hugging Face directory or a GGUF file, in `dtype`; the weights are read one at a time.

    Raises TenfoldError, with the name of the tensor, if a tensor is missing, unexpected, or of the wrong shape.
    """
    with _open(path) as (spec, stored):
        _require_weights(path, spec, stored)
        model = make_shapes(spec)
        tensors = _of_model(path, model, stored)
        model = model.to(dtype).to_empty(device="cpu")
        for buffer in model.buffers():
            buffer.zero_()
        if spec.tied:
            model.head.weight = model.embedding.weight
        for name, slot in slots_of(model).items():
            _set(slot, tensors[name], name, path)
    return model.requires_grad_(True)


def _of_model(path: Path, shapes: Llama, stored: dict[str, Stored]) -> dict[str, Stored]:
    """The stored tensors that are the model's weights. `shapes` is the model on the meta device.

    Raises TenfoldError if a weight is missing, or if another tensor is unknown or contradicts the config.
    """
    found, spec = dict(stored), shapes.spec
    if spec.tied:
        shapes.head.weight = shapes.embedding.weight
    slots = slots_of(shapes)
    for name in [name for name in found if name not in slots]:
        extra = found.pop(name)
        if name.endswith(".rotary_emb.inv_freq"):
            _require_frequencies(extra, spec, name, path)
        elif name.endswith("lm_head.weight") and spec.tied:
            _require_equal(extra, found, name, path)
        else:
            raise TenfoldError(f"{path} has a tensor {name!r} that a model with its config does not have.")
    missing = [name for name in slots if name not in found]
    if missing:
        raise TenfoldError(f"{path} lacks the tensor {missing[0]!r} ({len(missing)} in all).")
    return found


def _require_frequencies(stored: Stored, spec: ModelSpec, name: str, path: Path) -> None:
    """Raises TenfoldError if stored rotary frequencies, which may be rounded to bfloat16, are not those of the config."""
    plain = rope_frequencies(replace(spec, rope_scaling=None))
    if stored.shape != plain.shape or not torch.allclose(stored.read().float(), plain, rtol=0.01):
        raise TenfoldError(f"{path}: {name} holds other rotary frequencies than the config says: correct rope_theta there.")


def _require_equal(stored: Stored, found: dict[str, Stored], name: str, path: Path) -> None:
    embedding = next((tensor for key, tensor in found.items() if key.endswith("embed_tokens.weight")), None)
    if embedding is None or stored.shape != embedding.shape or not torch.equal(stored.read(), embedding.read()):
        raise TenfoldError(
            f"{path} ties the output head to the embedding but holds {name}, which differs from the embedding: set "
            "tie_word_embeddings to false in its config.json, or remove the tensor."
        )


def _set(slot: Slot | Stack, stored: Stored, name: str, path: Path) -> None:
    if slot.shape != stored.shape:
        raise TenfoldError(f"{path}: {name} has shape {stored.shape}, its config says {slot.shape}.")
    try:
        tensor = stored.read()
    except SafetensorError as error:
        raise TenfoldError(f"{path}: {name} cannot be read: {error}.") from None
    if not tensor.is_floating_point() or tensor.itemsize < 2:
        raise TenfoldError(f"{path}: {name} is stored as {tensor.dtype}, which is not supported: give a model in 16 or 32 bits.")
    slot.set(tensor)


def weights_hash(path: Path) -> str:
    """SHA-256 over the weight files of a Hugging Face directory, or of a GGUF file."""
    digest = hashlib.sha256()
    files = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    for file in files if path.is_dir() else [path]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def read_parts(path: Path) -> Iterator[tuple[str, nn.Module]]:
    """The parts of the model in a Hugging Face directory or GGUF file, one after another: name and module, in float32.

    Parts are those of `write_parts`. A part loses its memory when the next one is asked for, so the model is never all in
    memory. Raises TenfoldError as `read_model` does.
    """
    yield from ((name, part) for name, part, _ in _read_parts(path))


def read_slots(path: Path) -> Iterator[dict[str, Any]]:
    """As `read_parts`, but each part is a dict of its weights by their Hugging Face names."""
    yield from (slots for _, _, slots in _read_parts(path))


def _read_parts(path: Path) -> Iterator[tuple[str, nn.Module, dict[str, Slot | Stack]]]:
    with _open(path) as (spec, stored):
        _require_weights(path, spec, stored)
        tensors = _of_model(path, make_shapes(spec), stored)
        for name, part, slots in _parts(spec):
            for key, slot in slots.items():
                _set(slot, tensors[key], key, path)
            yield name, part, slots
