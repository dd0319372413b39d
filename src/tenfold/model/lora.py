"""Low-rank adapters (LoRA, arXiv 2106.09685): the weights of a model stay as they are, and beside each matrix B A is trained."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.model.quantised import QuantisedLinear, make_plain


class LoRALinear(nn.Linear):
    """A matrix that is kept, and `scale` times B A beside it: A [rank, in], B [out, rank]."""

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scale: float

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)


class QuantisedLoRALinear(LoRALinear, QuantisedLinear):
    """The same beside a matrix of few bits (QLoRA, arXiv 2305.14314)."""


def add_lora(model: Any, rank: int, alpha: float) -> None:
    """Freeze every weight, and give each matrix of the layers an adapter: A is random and B zero, so no output changes at first."""
    model.requires_grad_(False)
    for layer in model.layers:
        for linear in [m for m in layer.modules() if type(m) in (nn.Linear, QuantisedLinear)]:
            a = torch.empty(rank, linear.in_features, device=model.embedding.weight.device)
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            attach(linear, a, torch.zeros(linear.out_features, rank, device=a.device), alpha / rank)


def attach(linear: nn.Linear, a: Tensor, b: Tensor, scale: float) -> None:
    """Turn a linear layer into one with an adapter, in place."""
    linear.requires_grad_(False)
    linear.__class__ = QuantisedLoRALinear if isinstance(linear, QuantisedLinear) else LoRALinear
    assert isinstance(linear, LoRALinear)
    linear.lora_a, linear.lora_b, linear.scale = nn.Parameter(a), nn.Parameter(b), scale


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Add every adapter to its matrix, in place: the model is a plain one of floats again, all of which can be trained."""
    for module in list(model.modules()):
        if isinstance(module, LoRALinear):
            merged = module.weight + module.scale * module.lora_b @ module.lora_a
            del module.lora_a, module.lora_b
            make_plain(module, merged)
    model.requires_grad_(True)
