"""Weight matrices for the compiled step: panels of 16 outputs, in one of four formats. "exact" is the smallest lossless one.

    float32, bfloat16      the weights themselves
    int8                   w = scale * q                  one scale for each group of 32 inputs of an output
    int4                   w = scale * q + least          one scale and one `least` for each group of 32 inputs of an output

A checkpoint in bfloat16 is exact in bfloat16. GGUF's Q8_0 is exact in int8, and its Q4_1 and Q4_0 are exact in int4, since the
groups are the same; the scales of Q4_0 may be negative.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.model.quantised import groups, int4, int4_of_q4_0, int8

PANEL = 16
FORMATS = ("float32", "bfloat16", "int8", "int4")  # the index is `Matrix.format` in products.h


@dataclass(frozen=True)
class Packed:
    """A matrix [outputs, inputs], with outputs padded to whole panels. `bytes` are read for a product with one row."""

    format: str
    outputs: int
    inputs: int
    data: Tensor
    scales: Tensor | None = None
    leasts: Tensor | None = None

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in (self.data, self.scales, self.leasts) if t is not None)

    def in_panels(self) -> "Packed":
        """The matrix in panels [outputs / 16, inputs, 16]; int4 has two inputs in a byte, the even one in the low bits."""
        data = _panels(self.data)
        if self.format == "int4":
            data = data[:, 0::2] | (data[:, 1::2] << 4)
        scales, leasts = (None if t is None else _panels(t) for t in (self.scales, self.leasts))
        return replace(self, data=data, scales=scales, leasts=leasts)


def pack(weight: Tensor, format: str = "exact") -> Packed:
    """`weight` [outputs, inputs] in `format`, one of FORMATS, or "exact": the smallest that keeps every weight."""
    weight = F.pad(weight.detach().float(), (0, 0, 0, -weight.shape[0] % PANEL))
    if format == "exact":
        few = weight[:: max(1, len(weight) // 64)]  # a format that is not exact fails on a few rows already
        for smallest in (partial(_packed, "int4"), _packed_q4_0, partial(_packed, "int8"), partial(_packed, "bfloat16")):
            if _is_exact(few, smallest(few)) and _is_exact(weight, packed := smallest(weight)):
                return packed.in_panels()
        format = "float32"
    return _packed(format, weight).in_panels()


def _packed_q4_0(weight: Tensor) -> Packed:
    outputs, inputs = weight.shape
    return Packed("int4", outputs, inputs, *int4_of_q4_0(weight))


def _packed(format: str, weight: Tensor) -> Packed:
    """The matrix in `format` row by row, before it is put in panels; int4 has one number in a byte."""
    outputs, inputs = weight.shape
    if format == "int4":
        return Packed(format, outputs, inputs, *int4(weight))
    if format == "int8":
        return Packed(format, outputs, inputs, *int8(weight))
    return Packed(format, outputs, inputs, weight.to(getattr(torch, format)))


def _is_exact(weight: Tensor, packed: Packed) -> bool:
    """Whether the packed weights equal the weights up to float32's rounding."""
    again = packed.data.float()
    if packed.scales is not None:
        again = groups(again) * packed.scales.float()[..., None]
        if packed.leasts is not None:
            again += packed.leasts.float()[..., None]
        again = again.flatten(1)[:, : weight.shape[1]]
    return bool(((again - weight).abs() <= 4e-7 * weight.abs().amax(1, keepdim=True)).all())


def _panels(rows: Tensor) -> Tensor:
    """Rearrange [outputs, n] to [outputs / 16, n, 16]."""
    return rows.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()
