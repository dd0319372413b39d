"""Training in 8-bit floating point: linear and expert layers by torchao, where the GPU has the units for it."""

import logging
import warnings
from functools import partial
from typing import Any

import torch
from torch import nn

from tenfold.model.family import Role, family_of
from tenfold.model.llama import Llama
from tenfold.model.moe import GroupedLinear
from tenfold.spec.errors import NotInstalled

LEAST_CAPABILITY = (9, 0)  # Hopper: scaled matrix products by rows, grouped ones too
MULTIPLE = 16  # of which both sides of a matrix must be


def why_not(device: torch.device, dtype: torch.dtype) -> str:
    """Why fp8 would do nothing on this device, as the second half of a sentence; empty where it works."""
    if device.type != "cuda":
        return "this run is not on a GPU"
    if torch.version.hip is not None:
        return "only NVIDIA GPUs are known to have the kernels"
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} has no 8-bit units (Hopper and later have)"
    return "" if dtype == torch.bfloat16 else f"the run trains in {str(dtype).removeprefix('torch.')} and not in bfloat16"


def use_fp8(model: Llama, device: torch.device, dtype: torch.dtype) -> str:
    """Let linear and expert layers of `model` multiply in fp8 where the device can; returns a sentence on what was done.

    Routers, the image encoder, embeddings, the head and multi-token prediction stay in `dtype`: they are small, or lose by
    it. Where the device cannot, nothing changes and the sentence is a warning, too. Raises TenfoldError where torchao is
    missing on a GPU that could.
    """
    reason = why_not(device, dtype)
    if reason:
        said = f"fp8 was asked for and does nothing: {reason}; the run trains in {str(dtype).removeprefix('torch.')}."
        warnings.warn(said, stacklevel=3)
        return said
    converted, grouped = convert(model, emulate=False)
    return f"fp8 in {converted} linear and {grouped} expert matrices, scaled by rows (torchao)."


def convert(model: Llama, *, emulate: bool, recipe: str = "rowwise") -> tuple[int, int]:
    """Swap the layers; returns how many matrices of each kind. `recipe` is torchao's name for what is scaled together
    in linear layers. `emulate` computes in float32 what fp8 would, linear layers only: for tests on a machine without
    the units."""
    logging.getLogger("torchao").setLevel(logging.ERROR)
    grouped = [] if emulate else [m for m in model.modules() if isinstance(m, GroupedLinear)]
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        if grouped:
            from torchao.prototype.moe_training.fp8_grouped_mm import _to_fp8_rowwise_then_scaled_grouped_mm as scaled_grouped_mm
    except ImportError:
        raise NotInstalled("fp8 needs torchao: pip install 'tenfold[fp8]', or leave fp8 out.") from None

    swapped: list[str] = []
    role = family_of(model.spec).role

    def fits(module: nn.Module, name: str) -> bool:
        assert isinstance(module, nn.Linear)
        hidden = role(f"{name}.weight") in (Role.MATRIX, Role.RESIDUAL) and not name.startswith("mtp.")
        taken = hidden and not any(size % MULTIPLE for size in module.weight.shape)
        swapped.extend([name] if taken else [])
        return taken

    config: Any = Float8LinearConfig(emulate=True) if emulate else Float8LinearConfig.from_recipe_name(recipe)
    convert_to_float8_training(model, module_filter_fn=fits, config=config)
    for layer in grouped:
        layer.product = partial(_by_rows, scaled_grouped_mm)
    return len(swapped), len(grouped)


def _by_rows(scaled_grouped_mm: Any, x: torch.Tensor, weight: torch.Tensor, *, offs: torch.Tensor) -> torch.Tensor:
    return scaled_grouped_mm(x, weight, offs, torch.bfloat16)
