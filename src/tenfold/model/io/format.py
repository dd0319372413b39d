"""How other tools write the checkpoints of a family: what the entry `weights` of `tenfold.model.family.Family` gives."""

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
    """A family's tensor names in GGUF files by their Hugging Face names: `part` within a layer (`blk.N.`), `top` outside of layers.

    The rows of the tensors in `turned` are stored for rotary positions of neighbouring pairs, as in llama.cpp, not of halves.
    `stacks` are GGUF's names of the matrices that stand side by side in a stack of Hugging Face. Of the header, `read` are fields
    of the family's own, `spec_fields` gives the fields of a spec that follow from all of them, and `header` the family's own from
    a spec; it raises TenfoldError for a model that llama.cpp would compute otherwise.
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
    """The Hugging Face layout of a family, and its names in GGUF files where it has any.

    `model_types` are the values of `model_type` in a `config.json` of this family. `spec_fields` gives the fields of a spec
    from a config and a name for errors, `config` the config of a spec from the settings that all families share, and `slots`
    every weight of a model by its Hugging Face name.
    """

    model_types: tuple[str, ...]
    spec_fields: Callable[[dict[str, Any], str], dict[str, Any]]
    config: Callable[[ModelSpec, dict[str, Any]], dict[str, Any]]
    slots: Callable[[Any], dict[str, "Slot | Stack"]]
    gguf: GGUFNames | None = None


@dataclass(frozen=True)
class Slot:
    """The place of a Hugging Face tensor in our weights: a view [..., rows, columns].

    `halves`: Hugging Face's rotary embedding turns the first half of each head with the second, ours turns neighbours, so
    the rows of a head are permuted on the way in and out. `vector`: the tensor is a vector there, and one column here.
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
        """The tensor as Hugging Face has it."""
        rows = self.view
        if self.halves:
            rows = rows.unflatten(-2, (-1, 2)).transpose(-3, -2).flatten(-3, -2)
        return rows.reshape(self.shape)

    def pairs(self) -> Tensor:
        """The tensor as Meta and llama.cpp store it: their rotary embedding turns neighbours, as ours does."""
        return self.view.reshape(self.shape)

    def set(self, tensor: Tensor) -> None:
        rows = tensor.view(self.view.shape)
        if self.halves:
            rows = rows.unflatten(-2, (2, -1)).transpose(-3, -2).flatten(-3, -2)
        self.view.copy_(rows)


@dataclass(frozen=True)
class Stack:
    """The experts' matrices [experts, out, in] that Hugging Face keeps side by side as one [experts, in, sum of out]."""

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
