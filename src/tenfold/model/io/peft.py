"""Read and write adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

PEFT has one pair of matrices A, B for each of the query, key and value projections; ours has one pair for the joint `wqkv`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tenfold.model.io.format import Slot
from tenfold.model.io.stored import save_tensors
from tenfold.model.llama import FeedForward, Llama
from tenfold.model.lora import LoRALinear, attach
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import atomic_file, make_folder, write_json

PREFIX = "base_model.model.model.layers"
QKV = ("q_proj", "k_proj", "v_proj")


def write_adapter(model: Llama, directory: Path, base: str) -> None:
    """Write the adapters of a model in PEFT's format; `base` is the name or path of the base model."""
    tensors: dict[str, Tensor] = {}
    adapted = [(name, linear, parts) for name, linear, parts in _places(model) if isinstance(linear, LoRALinear)]
    rank, scale = max(linear.lora_a.shape[0] for _, linear, _ in adapted), adapted[0][1].scale
    for name, linear, parts in adapted:
        # PEFT has one rank and scale for all adapters: those of smaller rank are padded with zeros.
        missing = rank - linear.lora_a.shape[0]
        a, b = F.pad(linear.lora_a.detach(), (0, 0, 0, missing)), F.pad(linear.lora_b.detach(), (0, missing))
        for part, own in zip(parts, _divided(b * (linear.scale / scale), model, parts), strict=True):
            tensors[f"{name}.{part}.lora_A.weight"] = a.clone()
            tensors[f"{name}.{part}.lora_B.weight"] = own.contiguous()
    make_folder(directory)
    with atomic_file(directory / "adapter_model.safetensors") as scratch:
        save_tensors(tensors, scratch)
    targets = sorted({name.split(".")[-3] for name in tensors})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank, "lora_alpha": scale * rank,
        "target_modules": targets, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
    }  # fmt: skip
    write_json(directory / "adapter_config.json", config)


def read_adapter(model: Llama, directory: Path) -> None:
    """Attach the adapters of a PEFT directory to a model. Raises TenfoldError if they do not fit it, or are not plain LoRA."""
    for linear, (a, b, scale) in read_matrices(model, directory).items():
        attach(linear, a, b, scale)


def read_matrices(model: Llama, directory: Path) -> dict[nn.Linear, tuple[Tensor, Tensor, float]]:
    """A [rank, in], B [out, rank] and the scale for each linear layer that a PEFT directory adapts.

    Raises TenfoldError as `read_adapter` does.
    """
    try:
        config = json.loads((directory / "adapter_config.json").read_text())
        stored = load_file(directory / "adapter_model.safetensors", device=str(model.embedding.weight.device))
        tensors = {name: tensor.to(model.embedding.weight.dtype) for name, tensor in stored.items()}
        scale = config["lora_alpha"] / config["r"]
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, SafetensorError) as error:
        raise TenfoldError(f"{directory} is not a PEFT adapter: {error}.") from None
    if config.get("use_dora") or config.get("use_rslora") or config.get("rank_pattern") or config.get("alpha_pattern"):
        raise TenfoldError(f"The adapter in {directory} is not plain LoRA of one rank: merge it with PEFT first.")
    adapted = {}
    for name, linear, parts in _places(model):
        found = [tuple(tensors.pop(f"{name}.{part}.lora_{x}.weight", None) for x in "AB") for part in parts]
        if any(a is not None or b is not None for a, b in found):
            _check_shapes(found, linear, model, parts, directory)
            adapted[linear] = (*_joined(found, linear, model), scale)
    if tensors:
        raise TenfoldError(f"The adapter in {directory} has a matrix {next(iter(tensors))!r}, which {model.spec.name} lacks.")
    return adapted


def _check_shapes(found: list[Any], linear: nn.Linear, model: Llama, parts: tuple[str, ...], directory: Path) -> None:
    """Raises TenfoldError if one of A and B is missing, or if their shapes are not those of the model's matrix."""
    rows = [one.shape[0] for one in _divided(torch.empty(linear.out_features, 1, device="meta"), model, parts)]
    for part, (a, b), out in zip(parts, found, rows, strict=True):
        if a is None and b is None:
            continue
        rank, shapes = 0 if a is None else len(a), [None if t is None else tuple(t.shape) for t in (a, b)]
        if shapes != [(rank, linear.in_features), (out, rank)]:
            raise TenfoldError(
                f"The adapter in {directory} has matrices {shapes[0]} and {shapes[1]} for {part}, and {model.spec.name} has "
                f"{out} x {linear.in_features}: it was made for another model."
            )


def _places(model: Llama) -> Iterator[tuple[str, nn.Linear, tuple[str, ...]]]:
    """Every adaptable linear layer of the model, with PEFT's name of the module that holds it before, and PEFT's names of the
    projections in it after."""
    for i, block in enumerate(model.layers):
        layer, ffn = f"{PREFIX}.{i}", block.ffn
        if not isinstance(ffn, FeedForward):
            raise TenfoldError(f"PEFT has no format for adapters of {model.spec.name}'s experts: merge them into the model.")
        yield f"{layer}.self_attn", block.attention.wqkv, QKV
        yield f"{layer}.self_attn", block.attention.wo, ("o_proj",)
        for part, linear in (("gate_proj", ffn.w1), ("up_proj", ffn.w3), ("down_proj", ffn.w2)):
            yield f"{layer}.mlp", linear, (part,)


def _slots(b: Tensor, model: Llama) -> list[Slot]:
    """The rows of q, k and v in a matrix B [rows of wqkv, rank]."""
    spec = model.spec
    group = spec.n_heads // spec.n_kv_heads
    rows = b.view(spec.n_kv_heads, group + 2, spec.head_dim, b.shape[1])
    return [Slot(rows[:, :group], True), Slot(rows[:, group : group + 1], True), Slot(rows[:, group + 1 :])]


def _divided(b: Tensor, model: Llama, parts: tuple[str, ...]) -> list[Tensor]:
    return [slot.get() for slot in _slots(b, model)] if parts == QKV else [b]


def _joined(found: list[Any], linear: nn.Linear, model: Llama) -> tuple[Tensor, Tensor]:
    """One A and one B for a linear layer, from those of its projections: the A's are stacked, and the B's put in their rows."""
    if len(found) == 1:
        return found[0]
    rank, like = next((a.shape[0], a) for a, _ in found if a is not None)
    whole_a = like.new_zeros(rank * len(found), linear.in_features)
    whole_b = like.new_zeros(linear.out_features, rank * len(found))
    for i, (a, b) in enumerate(found):
        if a is not None:
            own = slice(i * rank, (i + 1) * rank)
            whole_a[own] = a
            rows = like.new_zeros(linear.out_features, rank)
            _slots(rows, model)[i].set(b)
            whole_b[:, own] = rows
    return whole_a, whole_b
