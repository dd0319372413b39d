"""How other tools store the checkpoints of a family: the types that `weights` of `tenfold.model.family.Family` returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold.spec.model import ModelSpec


def _nothing(_: Any) -> dict[str, Any]:
    return {}


class GGUFNames(NamedTuple):
    """How a family is stored in GGUF files.

    `part` maps GGUF's tensor names within a layer (`blk.N.`) to Hugging Face's; `top` does so for tensors outside the layers.
    Tensors in `turned` have their rows in the order of a rotary embedding that rotates adjacent pairs (llama.cpp's), not halves
    (Hugging Face's). `stacks` maps Hugging Face's name of a stack of expert matrices to GGUF's names of the matrices in it.
    `read` are the header fields that only this family has. `spec_fields` gives the ModelSpec fields that follow from the header,
    `header` the family's own header fields for a spec; `header` raises TenfoldError for a model that llama.cpp would compute
    differently.
    """

    architecture: str
    part: dict[str, str]
    top: dict[str, str]
    turned: tuple[str, ...] = ()
    stacks: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    read: tuple[str, ...] = ()
    spec_fields: Callable[[dict[str, Any]], dict[str, Any]] = _nothing
    header: Callable[[ModelSpec], dict[str, int]] = _nothing


class CheckpointFormat(NamedTuple):
    """The Hugging Face layout of a family, and its GGUF names if llama.cpp knows the family.

    `model_types` are the values of `model_type` in the family's `config.json`. `spec_fields` gives the ModelSpec fields from a
    config, and takes the model's name for error messages. `config` gives the config of a spec; it takes the settings that all
    families share. `slots` gives every weight of a model by its Hugging Face name.
    """

    model_types: tuple[str, ...]
    spec_fields: Callable[[dict[str, Any], str], dict[str, Any]]
    config: Callable[[ModelSpec, dict[str, Any]], dict[str, Any]]
    slots: Callable[[Any], dict[str, "Slot | Stack"]]
    gguf: GGUFNames | None = None


@dataclass(frozen=True)
class Slot:
    """The part of our weights that one Hugging Face tensor corresponds to: a view [..., rows, columns].

    `halves`: Hugging Face's rotary embedding rotates the first half of each head against the second, ours rotates adjacent
    pairs, so the rows of each head are permuted on reading and writing. `vector`: the Hugging Face tensor is a vector, and the
    view has it as one column.
    """

    view: Tensor
    halves: bool = False
    vector: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        if self.vector:
            return (self.view.numel(),)
        return tuple(self.view.shape) if self.view.ndim < 3 else (self.view[..., 0].numel(), self.view.shape[-1])

    @property
    def is_meta(self) -> bool:
        return self.view.is_meta

    def get(self) -> Tensor:
        """The tensor as Hugging Face stores it."""
        rows = self.view
        if self.halves:
            rows = rows.unflatten(-2, (-1, 2)).transpose(-3, -2).flatten(-3, -2)
        return rows.reshape(self.shape)

    def pairs(self) -> Tensor:
        """The tensor as Meta and llama.cpp store it: their rotary embedding rotates adjacent pairs, as ours does."""
        return self.view.reshape(self.shape)

    def set(self, tensor: Tensor) -> None:
        """Copy a tensor that Hugging Face stores into the view."""
        rows = tensor.view(self.view.shape)
        if self.halves:
            rows = rows.unflatten(-2, (2, -1)).transpose(-3, -2).flatten(-3, -2)
        self.view.copy_(rows)


@dataclass(frozen=True)
class Stack:
    """Experts' matrices, each [experts, out, in], that Hugging Face stores transposed and concatenated as one tensor
    [experts, in, sum of out]."""

    views: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        experts, _, fan_in = self.views[0].shape
        return experts, fan_in, sum(v.shape[1] for v in self.views)

    @property
    def is_meta(self) -> bool:
        return self.views[0].is_meta

    def get(self) -> Tensor:
        return torch.cat([v.mT for v in self.views], -1)

    def set(self, tensor: Tensor) -> None:
        for view, part in zip(self.views, tensor.split([v.shape[1] for v in self.views], -1), strict=True):
            view.copy_(part.mT)
