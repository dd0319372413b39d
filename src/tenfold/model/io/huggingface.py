"""Llama checkpoints in the layout that every other tool reads: `config.json`, `*.safetensors`, the tokenizer's files.

Hugging Face's rotary embedding of Llama 3 turns the first half of a head with the second; ours turns neighbours, as
the reference code does. So the rows of each query and key head are reordered on the way in and out. That of Llama 4
turns neighbours too, but its experts' matrices stand transposed.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tenfold.model.io.gguf import read_gguf
from tenfold.model.io.huggingface_config import config_from_spec, config_with_vocabulary, spec_from_config
from tenfold.model.io.tokenizer import copy_tokenizer, has_tokenizer
from tenfold.model.llama import Attention, FeedForward, Llama
from tenfold.model.llama4 import Llama4, make_shapes
from tenfold.model.moe import Experts
from tenfold.model.vision import Vision
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec

SHARD_BYTES = 4 * 2**30


def write_model(
    model: Llama, directory: Path, tokenizer_directory: Path | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """Write weights in shards of at most 4 GiB, `config.json`, and the tokenizer of a directory or GGUF file."""
    tensors = ((name, slot.get()) for name, slot in _slots(model).items())
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


def _parts(spec: ModelSpec) -> Iterator[tuple[str, nn.Module, dict[str, "_Slot | _Stack"]]]:
    """Each part of a model in turn, the only one that has memory then: its name, itself, its weights by Hugging Face's names."""
    model = make_shapes(spec)
    if spec.tied:
        model.head.weight = model.embedding.weight
    parts = [(name, part) for name, part in model.named_children() if name != "blocks" and not (spec.tied and name == "head")]
    for name, part in parts + [(f"blocks.{i}", block) for i, block in enumerate(model.layers)]:
        part.to_empty(device="cpu")
        yield name, part, {stored: slot for stored, slot in _slots(model).items() if not slot.is_meta}
        part.to("meta")


def _write(
    spec: ModelSpec, tensors: Iterator[tuple[str, Tensor]], directory: Path, tokenizer_directory: Path | None, dtype: torch.dtype
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    try:
        known = tokenizer_directory is not None and has_tokenizer(tokenizer_directory)
        vocabulary = copy_tokenizer(tokenizer_directory, directory) if tokenizer_directory and known else None
        config = config_with_vocabulary(config_from_spec(spec, dtype), vocabulary)
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        _write_shards(((name, tensor.to("cpu", dtype).contiguous()) for name, tensor in tensors), directory)
    except (OSError, SafetensorError) as error:
        raise TenfoldError(f"The model could not be written to {directory}: {error}.") from None


def _write_shards(tensors: Iterator[tuple[str, Tensor]], directory: Path) -> None:
    """Write shards as they fill; they have their names when their number is known."""
    shards: list[list[str]] = []
    sizes: list[int] = []

    def close(shard: dict[str, Tensor]) -> None:
        save_file(shard, directory / f".shard-{len(shards)}", metadata={"format": "pt"})
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
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def read_spec(path: Path) -> ModelSpec:
    """The shape of the model in a Hugging Face directory or a GGUF file."""
    if path.suffix == ".gguf":
        return read_gguf(path)[0]
    config = path / "config.json"
    if not config.exists():
        raise TenfoldError(f"{path} is no model: it has no config.json.")
    try:
        return spec_from_config(json.loads(config.read_text()), path.name)
    except ValueError:
        raise TenfoldError(f"{config} is not valid JSON.") from None


def read_model(path: Path, dtype: torch.dtype = torch.float32) -> Llama:
    """The model in a Hugging Face directory or a GGUF file, in `dtype`, tensor by tensor.

    Raises TenfoldError, naming the tensor, where one is missing, too many, or of another shape.
    """
    if path.suffix == ".gguf":
        spec, tensors = read_gguf(path)
    else:
        spec, tensors = read_spec(path), _stored(path)
    return assemble(spec, tensors, path, dtype)


def assemble(spec: ModelSpec, tensors: Iterator[tuple[str, Tensor]], path: Path, dtype: torch.dtype) -> Llama:
    """A model of `spec` from tensors under their Hugging Face names."""
    model = make_shapes(spec)
    model = model.to(dtype).to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.zero_()
    if spec.tied:
        model.head.weight = model.embedding.weight
    slots = _slots(model)
    for name, tensor in tensors:
        if name.endswith("lm_head.weight") and spec.tied:
            continue
        if name not in slots:
            raise TenfoldError(f"{path} has a tensor {name!r} that a model of this config does not have.")
        _set(slots.pop(name), tensor, name, path)
    if slots:
        raise TenfoldError(f"{path} lacks the tensor {next(iter(slots))!r} ({len(slots)} in all).")
    return model.requires_grad_(True)


def _set(slot: "_Slot | _Stack", tensor: Tensor, name: str, path: Path) -> None:
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
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
    for file in files:
        if not (path / file).exists():
            raise TenfoldError(f"{path} lacks {file}: copy the missing shard there.")
    return files


def read_parts(path: Path) -> Iterator[tuple[str, nn.Module]]:
    """The model in a Hugging Face directory, never whole in memory: the name and weights of one part after another, in float32.

    A part is as in `write_parts`; it is gone when the next is asked for. Raises TenfoldError as `read_model` does.
    """
    with ExitStack() as opened:
        place: dict[str, Any] = {}
        for file in _files(path):
            try:
                stored = opened.enter_context(safe_open(path / file, framework="pt"))
            except SafetensorError as error:
                raise TenfoldError(f"{path / file} is damaged or cut short: {error}.") from None
            place |= dict.fromkeys(stored.keys(), stored)
        for name, part, slots in _parts(read_spec(path)):
            for key, slot in slots.items():
                if key not in place:
                    raise TenfoldError(f"{path} lacks the tensor {key!r}.")
                _set(slot, place[key].get_tensor(key), key, path)
            yield name, part


@dataclass(frozen=True)
class _Slot:
    """Where a Hugging Face tensor stands in our weights: a view [..., rows, columns], its heads split in halves or not."""

    view: Tensor
    halves: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.view.shape) if self.view.ndim < 3 else (self.view[..., 0].numel(), self.view.shape[-1])

    @property
    def is_meta(self) -> bool:
        return self.view.is_meta

    def get(self) -> Tensor:
        """The tensor as Hugging Face has it."""
        rows = self.view
        if self.halves:
            rows = rows.unflatten(-2, (-1, 2)).transpose(-3, -2).flatten(-3, -2)
        return rows.reshape(self.shape)

    def set(self, tensor: Tensor) -> None:
        rows = tensor.view(self.view.shape)
        if self.halves:
            rows = rows.unflatten(-2, (2, -1)).transpose(-3, -2).flatten(-3, -2)
        self.view.copy_(rows)


@dataclass(frozen=True)
class _Stack:
    """The experts' matrices [experts, out, in] that Hugging Face keeps side by side as one [experts, in, sum of out]."""

    views: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        experts, _, fan_in = self.views[0].shape
        return experts, fan_in, sum(v.shape[1] for v in self.views)

    @property
    def is_meta(self) -> bool:
        return self.views[0].is_meta

    def get(self) -> Tensor:
        return torch.cat([v.mT for v in self.views], -1)

    def set(self, tensor: Tensor) -> None:
        for view, part in zip(self.views, tensor.split([v.shape[1] for v in self.views], -1), strict=True):
            view.copy_(part.mT)


def _slots(model: Llama) -> dict[str, _Slot | _Stack]:
    """Every weight under its Hugging Face name."""
    routed = isinstance(model, Llama4)
    slots: dict[str, _Slot | _Stack] = {"model.embed_tokens.weight": _Slot(model.embedding.weight.data)}
    for i, block in enumerate(model.layers):
        layer = f"model.layers.{i}"
        slots |= {
            f"{layer}.input_layernorm.weight": _Slot(block.attention_norm.weight.data),
            f"{layer}.post_attention_layernorm.weight": _Slot(block.ffn_norm.weight.data),
            **_attention_slots(f"{layer}.self_attn", block.attention, model.spec, halves=not routed),
            **_ffn_slots(f"{layer}.feed_forward" if routed else f"{layer}.mlp", block.ffn),
        }
    slots["model.norm.weight"] = _Slot(model.norm.weight.data)
    if not model.spec.tied:
        slots["lm_head.weight"] = _Slot(model.head.weight.data)
    if isinstance(model, Llama4) and model.vision is not None:
        return {f"language_model.{name}": slot for name, slot in slots.items()} | _vision_slots(model.vision)
    return slots


def _attention_slots(name: str, attention: Attention, spec: ModelSpec, halves: bool) -> dict[str, _Slot]:
    group = spec.n_heads // spec.n_kv_heads
    rows = attention.wqkv.weight.data.view(spec.n_kv_heads, group + 2, spec.head_dim, spec.dim)
    return {
        f"{name}.q_proj.weight": _Slot(rows[:, :group], halves),
        f"{name}.k_proj.weight": _Slot(rows[:, group : group + 1], halves),
        f"{name}.v_proj.weight": _Slot(rows[:, group + 1 :]),
        f"{name}.o_proj.weight": _Slot(attention.wo.weight.data),
    }


def _ffn_slots(name: str, ffn: nn.Module) -> dict[str, _Slot | _Stack]:
    if isinstance(ffn, Experts):
        assert ffn.shared is not None  # the config of a model without one is refused
        return {
            f"{name}.router.weight": _Slot(ffn.router.weight.data),
            f"{name}.experts.gate_up_proj": _Stack((ffn.w1.weight.data, ffn.w3.weight.data)),
            f"{name}.experts.down_proj": _Stack((ffn.w2.weight.data,)),
            **_ffn_slots(f"{name}.shared_expert", ffn.shared),
        }
    assert isinstance(ffn, FeedForward)
    return {
        f"{name}.gate_proj.weight": _Slot(ffn.w1.weight.data),
        f"{name}.up_proj.weight": _Slot(ffn.w3.weight.data),
        f"{name}.down_proj.weight": _Slot(ffn.w2.weight.data),
    }


def _vision_slots(vision: Vision) -> dict[str, _Slot | _Stack]:
    ours = {
        "vision_model.class_embedding": vision.last,
        "vision_model.positional_embedding_vlm": vision.positions,
        "vision_model.patch_embedding.linear.weight": vision.patch.weight,
        "vision_model.vision_adapter.mlp.fc1.weight": vision.adapter1.weight,
        "vision_model.vision_adapter.mlp.fc2.weight": vision.adapter2.weight,
        "multi_modal_projector.linear_1.weight": vision.projection.weight,
    }
    modules: dict[str, nn.Module] = {"layernorm_pre": vision.norm_before, "layernorm_post": vision.norm_after}
    for i, block in enumerate(vision.layers):
        layer = f"model.layers.{i}"
        modules |= {
            f"{layer}.input_layernorm": block.attention_norm,
            f"{layer}.post_attention_layernorm": block.ffn_norm,
            f"{layer}.self_attn.o_proj": block.wo,
            f"{layer}.mlp.fc1": block.w1,
            f"{layer}.mlp.fc2": block.w2,
        }
        for part in ("weight", "bias"):
            rows = getattr(block.wqkv, part).chunk(3)
            ours |= {f"vision_model.{layer}.self_attn.{n}_proj.{part}": r for n, r in zip("qkv", rows, strict=True)}
    for name, module in modules.items():
        ours |= {f"vision_model.{name}.{part}": p for part, p in module.named_parameters()}
    return {name: _Slot(p.data) for name, p in ours.items()}
