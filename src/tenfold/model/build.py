"""Build a model of any family, with or without memory for its weights."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tenfold.model.family import family_of
from tenfold.model.llama import Llama
from tenfold.spec.model import ModelSpec


def make_model(spec: ModelSpec) -> Llama:
    """A model of the spec's family with randomly initialized weights."""
    return family_of(spec).build(spec)


def make_shapes(spec: ModelSpec) -> Llama:
    """The same model on the meta device: its weights have shapes but no memory."""
    with torch.device("meta"), _NoInitialization():
        return make_model(spec)


class _NoInitialization(TorchFunctionMode):
    """Skips `torch.nn.init`: it has no effect on the meta device, but makes PyTorch import its compiler, which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
