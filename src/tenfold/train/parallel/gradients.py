"""The gradients of a distributed model: sum the ones that are partial, and clip by the norm of the whole gradient."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from tenfold.train.parallel.dims import ParallelDims


def local(t: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return t.to_local() if isinstance(t, DTensor) else t


def add_across_copies(model: nn.Module, now: bool) -> None:
    """Set whether the next backward pass sums gradients over `dp_replicate`; only that of a step's last micro-batch has to."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_all_reduce(now, recurse=False)


def gradients(model: nn.Module, dims: ParallelDims) -> list[tuple[Tensor, bool, bool]]:
    """For every parameter with a gradient: this process's part of the gradient, whether tensor or expert parallelism divides it,
    and whether it is a copy that another process also has.

    First sums the gradients that are partial over the tensor-parallel group, and the two gradients of an embedding and a tied head
    that are on different pipeline stages.
    """
    found = []
    for name, p in model.named_parameters():
        if p.grad is None:
            continue
        gradient = local(p.grad)
        divided = isinstance(p, DTensor) and not {"tp", "ep"}.isdisjoint(p.device_mesh.mesh_dim_names or ())
        if dims.tensor_group is not None and not divided:
            dist.all_reduce(gradient, group=dims.tensor_group)
        line = dims.pipeline
        copy = line is not None and line.tied and name == "embedding.weight" and line.add_tied(gradient)
        found.append((gradient, divided, copy))
    return found


def clip_gradient(model: nn.Module, limit: float, dims: ParallelDims) -> float:
    """Complete partial gradients, as `gradients` does, and scale all gradients to a norm of at most `limit`.

    Returns the norm before scaling.
    """
    if dims.alone:
        return float(nn.utils.clip_grad_norm_(model.parameters(), limit))
    squares = torch.zeros(2, dtype=torch.float64)
    held = gradients(model, dims)
    for gradient, divided, copy in held:
        squares[int(divided)] += 0.0 if copy else gradient.double().square().sum().cpu()
    dist.all_reduce(squares, group=dims.shard_group)
    if dims.tensor_group is not None:
        dist.all_reduce(squares[1:], group=dims.tensor_group)
    if dims.pipeline is not None:
        dist.all_reduce(squares, group=dims.pipeline.group)
    norm = float(squares.sum().sqrt())
    for gradient, *_ in held:
        gradient.mul_(min(1.0, limit / (norm + 1e-6)))
    return norm
