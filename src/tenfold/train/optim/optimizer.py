"""Make the optimizers, AdamW and Muon, with the learning rate and weight decay of each parameter."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tenfold.model.family import family_of
from tenfold.spec.model import ModelSpec
from tenfold.train.optim.hyperparameters import Hyperparameters, learning_rate_scale
from tenfold.train.optim.muon import Muon


def make_optimizers(model: nn.Module, spec: ModelSpec, h: Hyperparameters, kind: str) -> list[Optimizer]:
    """AdamW for all trainable parameters ("adamw"), or Muon for the hidden matrices, also those of experts, and AdamW for the rest,
    among them routers ("muon").

    Every parameter group has its peak learning rate in `peak_lr`. At the peak, matrices shrink by the share `h.weight_decay` per
    step; other parameters have no weight decay.
    """
    adam: dict[tuple[float, bool, Any], list[Tensor]] = {}
    muon: list[Tensor] = []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        role = family_of(spec).role(name)
        scale = learning_rate_scale(name, tuple(p.shape), spec)
        if kind == "muon" and role.is_hidden:
            muon.append(p)
        else:
            # By mesh too: a fused kernel takes tensors of one mesh only.
            adam.setdefault((scale, role.is_matrix, getattr(p, "device_mesh", None)), []).append(p)
    groups = []
    for (scale, matrix, _), params in adam.items():
        lr = h.learning_rate * scale
        groups.append({"params": params, "lr": lr, "peak_lr": lr, "weight_decay": h.weight_decay / lr if matrix else 0.0})
    optimizers: list[Optimizer] = [torch.optim.AdamW(groups, betas=(h.beta1, h.beta2), eps=1e-8, fused=True)]
    if muon:
        lr = h.muon_learning_rate
        optimizers.append(Muon([{"params": muon, "lr": lr, "peak_lr": lr, "weight_decay": h.weight_decay / lr}], lr=lr))
    return optimizers


def set_learning_rate(optimizers: list[Optimizer], share: float) -> None:
    """Set the learning rate of every parameter group to `share` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
