"""Llama checkpoints in the layout that every other tool reads: `config.json`, `*.safetensors`, the tokeniser's files.

Hugging Face's rotary embedding turns the first half of a head with the second; ours turns neighbours, as the
reference code does. So the rows of each query and key head are reordered on the way in and out.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tenfold.model.gguf import read_gguf
from tenfold.model.llama import Llama
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec, RopeScaling

SHARD_BYTES = 4 * 2**30
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def spec_from_config(config: dict[str, Any], name: str = "model") -> ModelSpec:
    """The shape that a Hugging Face `config.json` describes. Raises TenfoldError for another family than Llama."""
    family = config.get("model_type")
    if family != "llama":
        raise TenfoldError(f"{name} is a {family!r} model: only Llama 3 ('llama') can be read.")
    try:
        # transformers 5 keeps both under rope_parameters, earlier ones rope_theta and rope_scaling apart.
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "llama3"):
            raise TenfoldError(f"{name} stretches its rotary positions by {kind!r}: only 'llama3' is known.")
        heads = config["num_attention_heads"]
        return ModelSpec(
            name=name,
            dim=config["hidden_size"],
            n_layers=config["num_hidden_layers"],
            n_heads=heads,
            n_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            ffn_dim=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
            context=config.get("max_position_embeddings", 2048),
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta", 10000.0)),
            rope_scaling=RopeScaling(
                factor=rope["factor"],
                low_freq_factor=rope["low_freq_factor"],
                high_freq_factor=rope["high_freq_factor"],
                original_context=rope["original_max_position_embeddings"],
            )
            if kind == "llama3"
            else None,
            norm_eps=config.get("rms_norm_eps", 1e-6),
        )
    except KeyError as error:
        raise TenfoldError(f"The config.json of {name} lacks {error}.") from None


def config_from_spec(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The `config.json` of a shape."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": spec.rope_theta}
    if s := spec.rope_scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_context,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": spec.dim,
        "intermediate_size": spec.ffn_dim,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.context,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "rope_parameters": rope,
        "rope_scaling": rope if spec.rope_scaling else None,
        "tie_word_embeddings": spec.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": str(dtype).removeprefix("torch."),
    }


def write_model(
    model: Llama, directory: Path, tokenizer_directory: Path | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """Write weights in shards of at most 4 GiB, `config.json`, and copies of the tokeniser's files."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        (directory / "config.json").write_text(json.dumps(config_from_spec(model.spec, dtype), indent=2) + "\n")
        shards: list[dict[str, Tensor]] = [{}]
        size = 0
        for name, slot in _slots(model).items():
            tensor = slot.get().to("cpu", dtype).contiguous()
            if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
                shards.append({})
                size = 0
            shards[-1][name] = tensor
            size += tensor.nbytes
        _write_shards(shards, directory)
        for file in _TOKENIZER_FILES:
            if tokenizer_directory is not None and (tokenizer_directory / file).exists():
                shutil.copyfile(tokenizer_directory / file, directory / file)
    except (OSError, SafetensorError) as error:
        raise TenfoldError(f"The model could not be written to {directory}: {error}.") from None


def _write_shards(shards: list[dict[str, Tensor]], directory: Path) -> None:
    if len(shards) == 1:
        save_file(shards[0], directory / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(t.nbytes for s in shards for t in s.values())}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def read_spec(path: Path) -> ModelSpec:
    """The shape of the model in a Hugging Face directory."""
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
    with torch.device("meta"):
        model = Llama(spec)
    model = model.to(dtype).to_empty(device="cpu")
    if spec.tied:
        model.head.weight = model.embedding.weight
    slots = _slots(model)
    for name, tensor in tensors:
        if name == "lm_head.weight" and spec.tied:
            continue
        if name not in slots:
            raise TenfoldError(f"{path} has a tensor {name!r} that a Llama of this config does not have.")
        slot = slots.pop(name)
        if slot.shape != tuple(tensor.shape):
            raise TenfoldError(f"{path}: {name} has shape {tuple(tensor.shape)}, its config says {slot.shape}.")
        slot.set(tensor)
    if slots:
        raise TenfoldError(f"{path} lacks the tensor {next(iter(slots))!r} ({len(slots)} in all).")
    return model.requires_grad_(True)


def _stored(path: Path) -> Iterator[tuple[str, Tensor]]:
    index = path / "model.safetensors.index.json"
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
    for file in files:
        if not (path / file).exists():
            raise TenfoldError(f"{path} lacks {file}: copy the missing shard there.")
        try:
            with safe_open(path / file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 (not a dict)
                    yield name, stored.get_tensor(name)
        except SafetensorError as error:
            raise TenfoldError(f"{path / file} is damaged or cut short: {error}.") from None


@dataclass(frozen=True)
class _Slot:
    """Where a Hugging Face tensor stands in our weights: a view [..., rows, columns], its heads split in halves or not."""

    view: Tensor
    halves: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.view.shape) if self.view.ndim < 3 else (self.view[..., 0].numel(), self.view.shape[-1])

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


def _slots(model: Llama) -> dict[str, _Slot]:
    """Every weight under its Hugging Face name."""
    spec = model.spec
    group = spec.n_heads // spec.n_kv_heads
    slots = {"model.embed_tokens.weight": _Slot(model.embedding.weight.data)}
    for i, block in enumerate(model.layers):
        rows = block.attention.wqkv.weight.data.view(spec.n_kv_heads, group + 2, spec.head_dim, spec.dim)
        slots |= {
            f"model.layers.{i}.self_attn.q_proj.weight": _Slot(rows[:, :group], halves=True),
            f"model.layers.{i}.self_attn.k_proj.weight": _Slot(rows[:, group : group + 1], halves=True),
            f"model.layers.{i}.self_attn.v_proj.weight": _Slot(rows[:, group + 1 :]),
            f"model.layers.{i}.self_attn.o_proj.weight": _Slot(block.attention.wo.weight.data),
            f"model.layers.{i}.mlp.gate_proj.weight": _Slot(block.ffn.w1.weight.data),
            f"model.layers.{i}.mlp.up_proj.weight": _Slot(block.ffn.w3.weight.data),
            f"model.layers.{i}.mlp.down_proj.weight": _Slot(block.ffn.w2.weight.data),
            f"model.layers.{i}.input_layernorm.weight": _Slot(block.attention_norm.weight.data),
            f"model.layers.{i}.post_attention_layernorm.weight": _Slot(block.ffn_norm.weight.data),
        }
    slots["model.norm.weight"] = _Slot(model.norm.weight.data)
    if not spec.tied:
        slots["lm_head.weight"] = _Slot(model.head.weight.data)
    return slots
