"""Low-rank adapters (LoRA, arXiv 2106.09685): a model's weights are frozen, and a product B A is trained beside each matrix."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.model.quantised import QuantisedLinear, make_plain
from tenfold.spec.errors import TenfoldError


class LoRALinear(nn.Linear):
    """A frozen matrix W with an adapter: y = (W + `scale` * B A) x, with `lora_a` A [rank, in] and `lora_b` B [out, rank]."""

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scale: float

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)


class QuantisedLoRALinear(LoRALinear, QuantisedLinear):
    """The same, with the frozen matrix quantised (QLoRA, arXiv 2305.14314)."""


def add_lora(model: Any, rank: int, alpha: float) -> None:
    """Freeze every weight and give each matrix in the layers an adapter of `rank` with scale `alpha` / `rank`.

    A is random and B is zero, so the outputs do not change until the adapter is trained. Raises TenfoldError for a model with
    experts, whose adapters PEFT's format cannot hold.
    """
    if model.spec.n_experts:
        raise TenfoldError(
            f"{model.spec.name} has experts, and adapters of experts cannot be saved for PEFT: set lora_rank = 0 in [task]."
        )
    model.requires_grad_(False)
    for layer in model.layers:
        for linear in [m for m in layer.modules() if type(m) in (nn.Linear, QuantisedLinear)]:
            a = torch.empty(rank, linear.in_features, device=model.embedding.weight.device)
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            attach(linear, a, torch.zeros(linear.out_features, rank, device=a.device), alpha / rank)


def attach(linear: nn.Linear, a: Tensor, b: Tensor, scale: float) -> None:
    """Give a linear layer an adapter, in place."""
    linear.requires_grad_(False)
    linear.__class__ = QuantisedLoRALinear if isinstance(linear, QuantisedLinear) else LoRALinear
    assert isinstance(linear, LoRALinear)
    linear.lora_a, linear.lora_b, linear.scale = nn.Parameter(a), nn.Parameter(b), scale


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Add every adapter to its matrix, in place. The model then has plain float weights again, all of them trainable."""
    for module in list(model.modules()):
        if isinstance(module, LoRALinear):
            merged = module.weight + module.scale * module.lora_b @ module.lora_a
            del module.lora_a, module.lora_b
            make_plain(module, merged)
    model.requires_grad_(True)
