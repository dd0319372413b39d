"""AdamW and Muon, with each parameter's learning rate and decay by the one rule."""

from typing import Annotated, Any, Literal

import torch
from msgspec import Meta, Struct
from torch import Tensor, nn
from torch.optim import Optimizer

from tenfold.model.family import family_of
from tenfold.spec.model import ModelSpec
from tenfold.train.optim.hyperparameters import Hyperparameters, learning_rate_scale
from tenfold.train.optim.muon import Muon


class OptimizerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[optimizer]`; `None` means derived from the compute."""

    name: Annotated[Literal["muon", "adamw"], Meta(description="muon (AdamW for what is no hidden matrix) or adamw.")] = "muon"
    learning_rate: Annotated[float | None, Meta(description="Of a hidden matrix of the base width, at the peak.")] = None
    weight_decay: Annotated[float | None, Meta(description="Share of a matrix that is forgotten each step at the peak.")] = None
    beta2: Annotated[Annotated[float, Meta(ge=0, lt=1)] | None, Meta(description="AdamW's second moment.")] = None
    schedule: Annotated[Literal["wsd", "cosine"], Meta(description="Warm-up, stable, decay; or a half cosine.")] = "wsd"
    warmup: Annotated[float, Meta(ge=0, le=1, description="Share of the run that the learning rate rises in.")] = 0.1
    decay: Annotated[float, Meta(ge=0, le=1, description="Share of the run that it falls in (wsd).")] = 0.4
    max_grad_norm: Annotated[float, Meta(gt=0, description="Gradients are scaled to at most this norm.")] = 1.0
    max_skipped: Annotated[int, Meta(gt=0, description="Steps in a row that may be skipped before the run ends.")] = 20


def make_optimizers(model: nn.Module, spec: ModelSpec, h: Hyperparameters, kind: str) -> list[Optimizer]:
    """AdamW for all, or Muon for the hidden matrices (experts' too) and AdamW for the rest, routers among them.

    Every group keeps its peak in `peak_lr`; matrices decay by `weight_decay` per step at the peak.
    """
    adam: dict[tuple[float, bool, Any], list[Tensor]] = {}
    muon: list[Tensor] = []
    for name, p in model.named_parameters():
        role = family_of(spec).role(name)
        scale = learning_rate_scale(name, tuple(p.shape), spec)
        if kind == "muon" and role.is_hidden:
            muon.append(p)
        else:
            adam.setdefault((scale, role.is_matrix, getattr(p, "device_mesh", None)), []).append(p)  # one kernel takes one mesh
    groups = []
    for (scale, matrix, _), params in adam.items():
        lr = h.learning_rate * scale
        groups.append(
            {"params": params, "lr": lr, "peak_lr": lr, "weight_decay": h.weight_decay / lr if matrix else 0.0}
        )
    optimizers: list[Optimizer] = [torch.optim.AdamW(groups, betas=(h.beta1, h.beta2), eps=1e-8, fused=True)]
    if muon:
        lr = h.muon_learning_rate
        optimizers.append(Muon([{"params": muon, "lr": lr, "peak_lr": lr, "weight_decay": h.weight_decay / lr}], lr=lr))
    return optimizers


def set_learning_rate(optimizers: list[Optimizer], share: float) -> None:
    """Set every group to `share` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
