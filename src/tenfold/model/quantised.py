"""Matrices quantised to 8 or 4 bits, in groups of 32 inputs of one output. The serving engine and QLoRA use the same functions.

    int8        w = scale * q, q in -127 ... 127
    int4        w = scale * q + least, q in 0 ... 15, two values per byte

Scales and minima (`leasts`) are float16, as in GGUF's Q8_0 and Q4_1.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.model.moe import expert_layers

GROUP = 32  # inputs that share a scale
Bits = Literal["int8", "int4"]


class QuantisedLinear(nn.Linear):
    """A quantised linear layer that is not trained. Its matrix is dequantised for each product, forward and backward."""

    numbers: Tensor
    scales: Tensor
    leasts: Tensor | None

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dequantised matrix, float32 [out, in]; computed at each access and not stored."""
        return _dequantised(self.numbers, self.scales, self.leasts, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        product = _Product.apply(x, self.numbers, self.scales, self.leasts, self.in_features)
        return product if self.bias is None else product + self.bias


def quantise_layers(model: Any, bits: Bits) -> None:
    """Quantise every linear layer in the decoder's layers to `bits`, in place, and freeze the whole model.

    Embedding, head, norms, stacked experts and routers are not quantised. A router is small, and rounded weights would send some
    tokens to other experts.
    """
    model.requires_grad_(False)
    for layer in model.layers:
        routers = [experts.router for experts in expert_layers(layer)]
        for linear in [m for m in layer.modules() if type(m) is nn.Linear and m not in routers]:
            numbers, scales, *rest = (int8 if bits == "int8" else int4)(linear.weight.detach().float())
            if rest:
                numbers = F.pad(numbers, (0, numbers.shape[1] % 2))
                numbers = numbers[:, 0::2] | (numbers[:, 1::2] << 4)
            del linear.weight
            linear.__class__ = QuantisedLinear
            for name, tensor in (("numbers", numbers), ("scales", scales), ("leasts", rest[0] if rest else None)):
                linear.register_buffer(name, tensor, persistent=False)  # not saved: a resumed run quantises its `init_from` again


def make_plain(linear: nn.Linear, weight: Tensor) -> None:
    """Turn a linear layer, quantised or with an adapter, into an `nn.Linear` with the trainable `weight`, in place."""
    if isinstance(linear, QuantisedLinear):
        for name in ("numbers", "scales", "leasts"):
            delattr(linear, name)
    linear.__class__ = nn.Linear
    linear.weight = nn.Parameter(weight)


class _Product(torch.autograd.Function):
    """x times the transposed matrix. The quantised matrix is saved for the backward pass, not the dequantised one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, numbers: Tensor, scales: Tensor, leasts: Tensor | None, inputs: int) -> Tensor:
        ctx.matrix, ctx.inputs = (numbers, scales, leasts), inputs
        return F.linear(x, _dequantised(numbers, scales, leasts, inputs))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        numbers, scales, leasts = ctx.matrix
        (grad,) = grad_outputs
        return grad @ _dequantised(numbers, scales, leasts, ctx.inputs).to(grad.dtype), None, None, None, None


def _dequantised(numbers: Tensor, scales: Tensor, leasts: Tensor | None, inputs: int) -> Tensor:
    """The matrix as float32 [out, in]."""
    if leasts is None:
        whole = groups(numbers.float()) * scales.float()[..., None]
    else:
        both = torch.stack((numbers & 15, numbers >> 4), -1).flatten(1)[:, :inputs]
        whole = groups(both.float()).mul_(scales.float()[..., None]).add_(leasts.float()[..., None])
    return whole.flatten(1)[:, :inputs]


def groups(weight: Tensor) -> Tensor:
    """A matrix [outputs, inputs] as [outputs, groups, 32]; an incomplete last group is filled with its last weight."""
    short = -weight.shape[1] % GROUP
    if short:
        weight = torch.cat((weight, weight[:, -1:].expand(-1, short)), 1)
    return weight.unflatten(1, (-1, GROUP))


def int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 weights [outputs, inputs] as integers int8 [outputs, inputs] and scales float16 [outputs, groups]."""
    grouped = groups(weight)
    scales = (grouped.abs().amax(-1) / 127).half()
    q = (grouped / scales.float()[..., None]).nan_to_num(0).round().clamp(-127, 127)
    return q.to(torch.int8).flatten(1)[:, : weight.shape[1]], scales


def int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 weights [outputs, inputs] as integers 0 ... 15, uint8 [outputs, inputs], and scales and minima, float16
    [outputs, groups]."""
    grouped = groups(weight)
    least, most = grouped.aminmax(dim=-1)
    leasts = least.half()
    scales = ((most - leasts.float()) / 15).half()
    q = ((grouped - leasts.float()[..., None]) / scales.float()[..., None]).nan_to_num(0).round().clamp(0, 15)
    return q.to(torch.uint8).flatten(1)[:, : weight.shape[1]], scales, leasts


def int4_of_q4_0(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `int4`, on the grid of GGUF's Q4_0: the weight of largest magnitude in a group, of either sign, is -8 * scale."""
    grouped = groups(weight)
    largest = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))[..., 0]
    scales = (largest / -8).half()
    leasts = -8 * scales
    q = ((grouped - leasts.float()[..., None]) / scales.float()[..., None]).nan_to_num(0).round().clamp(0, 15)
    return q.to(torch.uint8).flatten(1)[:, : weight.shape[1]], scales, leasts
