"""Matrices of 8 or 4 bits, in groups of 32 inputs of an output; the serving engine and frozen weights beside adapters share them.

    int8        w = scale * q, q in -127 ... 127
    int4        w = scale * q + least, q in 0 ... 15, two numbers a byte

Scales and leasts are float16, as in GGUF's Q8_0 and Q4_1.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 32
Bits = Literal["int8", "int4"]


class QuantisedLinear(nn.Linear):
    """A matrix that is kept in few bits and not trained. It is made whole for each product, forward and backward."""

    numbers: Tensor
    scales: Tensor
    leasts: Tensor | None

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The matrix as floats [out, in], which nothing keeps."""
        return _whole(self.numbers, self.scales, self.leasts, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        product = _Product.apply(x, self.numbers, self.scales, self.leasts, self.in_features)
        return product if self.bias is None else product + self.bias


def quantise_layers(model: Any, bits: Bits) -> None:
    """Keep every matrix of the layers in `bits`, in place; embedding, head and norms stay as they are, and nothing is trained."""
    model.requires_grad_(False)
    for layer in model.layers:
        for linear in [m for m in layer.modules() if type(m) is nn.Linear]:
            numbers, scales, *rest = (int8 if bits == "int8" else int4)(linear.weight.detach().float())
            if rest:
                numbers = F.pad(numbers, (0, numbers.shape[1] % 2))
                numbers = numbers[:, 0::2] | (numbers[:, 1::2] << 4)
            del linear.weight
            linear.__class__ = QuantisedLinear
            for name, tensor in (("numbers", numbers), ("scales", scales), ("leasts", rest[0] if rest else None)):
                linear.register_buffer(name, tensor, persistent=False)  # made again from the weights that a run begins with


def make_plain(linear: nn.Linear, weight: Tensor) -> None:
    """Turn a quantised linear layer into a trainable one of floats, in place."""
    if isinstance(linear, QuantisedLinear):
        for name in ("numbers", "scales", "leasts"):
            delattr(linear, name)
    linear.__class__ = nn.Linear
    linear.weight = nn.Parameter(weight)


class _Product(torch.autograd.Function):
    """x times the transposed matrix; what is kept for the backward pass is the matrix in few bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, numbers: Tensor, scales: Tensor, leasts: Tensor | None, inputs: int) -> Tensor:
        ctx.matrix, ctx.inputs = (numbers, scales, leasts), inputs
        return F.linear(x, _whole(numbers, scales, leasts, inputs))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        numbers, scales, leasts = ctx.matrix
        (grad,) = grad_outputs
        return grad @ _whole(numbers, scales, leasts, ctx.inputs).to(grad.dtype), None, None, None, None


def _whole(numbers: Tensor, scales: Tensor, leasts: Tensor | None, inputs: int) -> Tensor:
    """float32 [out, in]."""
    if leasts is None:
        whole = groups(numbers.float()) * scales.float()[..., None]
    else:
        both = torch.stack((numbers & 15, numbers >> 4), -1).flatten(1)[:, :inputs]
        whole = groups(both.float()).mul_(scales.float()[..., None]).add_(leasts.float()[..., None])
    return whole.flatten(1)[:, :inputs]


def groups(weight: Tensor) -> Tensor:
    """[outputs, groups, 32]; a short last group is filled with its last weight."""
    short = -weight.shape[1] % GROUP
    if short:
        weight = torch.cat((weight, weight[:, -1:].expand(-1, short)), 1)
    return weight.unflatten(1, (-1, GROUP))


def int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers int8 [outputs, inputs] and scales float16 [outputs, groups] of float32 weights."""
    grouped = groups(weight)
    scales = (grouped.abs().amax(-1) / 127).half()
    q = (grouped / scales.float()[..., None]).nan_to_num(0).round().clamp(-127, 127)
    return q.to(torch.int8).flatten(1)[:, : weight.shape[1]], scales


def int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integers 0 ... 15 uint8 [outputs, inputs], scales and leasts float16 [outputs, groups] of float32 weights."""
    grouped = groups(weight)
    least, most = grouped.aminmax(dim=-1)
    leasts = least.half()
    scales = ((most - leasts.float()) / 15).half()
    q = ((grouped - leasts.float()[..., None]) / scales.float()[..., None]).nan_to_num(0).round().clamp(0, 15)
    return q.to(torch.uint8).flatten(1)[:, : weight.shape[1]], scales, leasts


def int4_of_q4_0(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same where the grid is that of GGUF's Q4_0: the largest weight of a group, whatever its sign, is -8 scales."""
    grouped = groups(weight)
    largest = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))[..., 0]
    scales = (largest / -8).half()
    leasts = -8 * scales
    q = ((grouped - leasts.float()[..., None]) / scales.float()[..., None]).nan_to_num(0).round().clamp(0, 15)
    return q.to(torch.uint8).flatten(1)[:, : weight.shape[1]], scales, leasts
