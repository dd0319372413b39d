"""Weights on a grid of 4 or 8 bits, in groups of 32 along a row: the grids of llama.cpp's Q4_0 and Q8_0.

A model whose weights lie on the grid is exported to those formats without further loss.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.model.llama import Llama
from tenfold.model.moe import expert_layers
from tenfold.model.quantised import GROUP


def on_grid(weight: Tensor, grid: str) -> Tensor:
    """`weight` [..., n] rounded to the nearest values of the grid `int8` or `int4`; unchanged where n is no multiple of 32."""
    if weight.shape[-1] % GROUP:
        return weight
    groups = weight.float().unflatten(-1, (-1, GROUP))
    if grid == "int8":
        scale, low, high = groups.abs().amax(-1, keepdim=True) / 127, -127, 127
    else:
        # As in Q4_0, the weight of the largest magnitude becomes -8 steps; the sign of the scale follows from it.
        largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
        scale, low, high = largest / -8, -8, 7
    steps = torch.where(scale == 0, 0.0, groups / torch.where(scale == 0, 1.0, scale)).round().clamp(low, high)
    return (steps * scale.half().float()).flatten(-2).to(weight.dtype)


def _routers(model: nn.Module) -> set[nn.Module]:
    """The routers of experts, which are never rounded: exports keep them as floats, and they decide which experts compute."""
    return {experts.router for experts in expert_layers(model)}


def left_as_they_are(model: Llama) -> tuple[int, int]:
    """How many matrices of the layers cannot be rounded (rows that are no multiple of 32), and how many there are in all, without
    routers."""
    routers = {router.weight for router in _routers(model)}
    named = model.named_parameters()
    matrices = [p for name, p in named if name.startswith("blocks.") and p.ndim == 2 and p not in routers]
    return sum(p.shape[-1] % GROUP > 0 for p in matrices), len(matrices)


class GridLinear(nn.Linear):
    """A linear layer whose weight is rounded to the grid in the forward pass, with a straight-through gradient.

    With 4 bits its input is rounded to 8 bits per token, too, as phones compute (8da4w in torchao).
    """

    grid: str

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + (on_grid(self.weight, self.grid) - self.weight).detach()
        if self.grid == "int4":
            scale = x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-8) / 127
            x = x + ((x / scale).round() * scale - x).detach()
        return F.linear(x, weight)


def train_on_grid(model: nn.Module, grid: str) -> None:
    """Make the matrices of the layers `GridLinear`, without routers, in place; parameter names and shapes stay."""
    routers = _routers(model)
    for name, module in model.named_modules():
        if name.startswith("blocks.") and type(module) is nn.Linear and module not in routers:
            module.__class__ = GridLinear
            module.grid = grid  # type: ignore[assignment]


@torch.no_grad()
def round_to_grid(model: Llama, grid: str, *, layers: bool = True) -> None:
    """Round the embedding and head to 8 bits, and every matrix of the `layers` but routers to the grid, in place."""
    routers = {router.weight for router in _routers(model)}
    for name, p in model.named_parameters():
        inside = name.startswith("blocks.")
        if p.ndim == 2 and p not in routers and (layers or not inside):
            p.copy_(on_grid(p, grid if inside else "int8"))
