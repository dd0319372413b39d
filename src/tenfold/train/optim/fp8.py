"""Train linear and expert layers in 8-bit floating point with torchao, where the GPU supports it."""

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

LEAST_CAPABILITY = (9, 0)  # Hopper: matrix products with a scale per row, also grouped ones
MULTIPLE = 16  # both dimensions of a matrix must be a multiple of it


def why_not(device: torch.device, dtype: torch.dtype) -> str:
    """Why fp8 would have no effect on this device, as the second half of a sentence; "" where it works."""
    if device.type != "cuda":
        return "this run is not on a GPU"
    if torch.version.hip is not None:
        return "only NVIDIA GPUs are known to have the kernels"
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} has no 8-bit units (Hopper and later have)"
    return "" if dtype == torch.bfloat16 else f"the run trains in {str(dtype).removeprefix('torch.')} and not in bfloat16"


def use_fp8(model: Llama, device: torch.device, dtype: torch.dtype) -> str:
    """Make linear and expert layers of `model` compute in fp8 if the device supports it; returns in a sentence what was done.

    Routers, the image encoder, embeddings, the head and multi-token prediction stay in `dtype`, because they are small or lose
    accuracy; so do layers with adapters. If the device does not support fp8, the model is unchanged and the sentence is also issued
    as a warning. Raises TenfoldError if the device supports it and torchao is missing. To be called before `parallelize`.
    """
    reason = why_not(device, dtype)
    if reason:
        said = f"fp8 was requested but does nothing: {reason}; the run trains in {str(dtype).removeprefix('torch.')}."
        warnings.warn(said, stacklevel=3)
        return said
    converted, grouped = convert(model, emulate=False)
    return f"fp8 in {converted} linear and {grouped} expert matrices, scaled by rows (torchao)."


def convert(model: Llama, *, emulate: bool, recipe: str = "rowwise") -> tuple[int, int]:
    """Convert linear and expert layers to fp8; returns how many matrices of each kind were converted.

    `recipe` is torchao's name for the granularity of scales in linear layers. `emulate` rounds to fp8 but computes in float32, in
    linear layers only, for tests on machines without fp8.
    """
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
        if type(module) is not nn.Linear:  # torchao would drop an adapter, or the bits of a quantised matrix
            return False
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
