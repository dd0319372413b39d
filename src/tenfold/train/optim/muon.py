"""Muon (Keller Jordan), for matrices and for stacks of them, many of one shape in one go.

PyTorch's own takes single matrices alone and one after another, in bfloat16: on a CPU, for small models, that is a
fifth of a step.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # those of torch.optim.Muon
ITERATIONS = 5
TOGETHER_BYTES = 2**28  # of float32 matrices in one go: what a process holds whole does not grow with the model's depth


def orthogonalize(g: Tensor, eps: float = 1e-7) -> Tensor:
    """Newton-Schulz on each matrix of g [matrices, rows, columns]: singular values near 1. bfloat16 on a GPU."""
    a, b, c = COEFFICIENTS
    x = g.bfloat16() if g.is_cuda else g.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(Optimizer):
    """The step of `torch.optim.Muon` (adjust_lr_fn "original") for each matrix of parameters [(groups,) out, in].

    A matrix that several processes share is gathered, and each works out the step of the whole.

    "original" scales each step to the spectral norm that keeps its effect the same at every width.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(tuple(p.shape[-2:]), []).append(p)
            for params in shapes.values():
                for together in _portions(params):
                    self._update(together, group)

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """The step of parameters whose matrices are of one shape."""
        rows, columns = params[0].shape[-2:]
        step_size = group["lr"] * max(1.0, rows / columns) ** 0.5
        directions = orthogonalize(torch.cat([self._direction(p, group["momentum"]) for p in params]))
        for p, direction in zip(params, directions.split([p.numel() // (rows * columns) for p in params]), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(_placed_as(p, direction.view(p.shape).to(p.dtype)), alpha=-step_size)

    def _direction(self, p: Tensor, momentum: float) -> Tensor:
        """Nesterov's momentum of the gradient, as [matrices, rows, columns]."""
        assert p.grad is not None
        if "momentum_buffer" not in self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
        buffer = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - momentum)
        direction = p.grad.lerp(buffer, momentum)
        whole = direction.full_tensor() if isinstance(direction, DTensor) else direction
        return whole.view(-1, *p.shape[-2:])


def _portions(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters in their order, as many at a time as `TOGETHER_BYTES` allows, and at least one."""
    together: list[Tensor] = []
    for p in params:
        if together and 4 * sum(one.numel() for one in (*together, p)) > TOGETHER_BYTES:
            yield together
            together = []
        together.append(p)
    yield together


def _placed_as(p: Tensor, whole: Tensor) -> Tensor:
    """A whole matrix that all processes hold, placed as p is: each keeps its own part."""
    if not isinstance(p, DTensor):
        return whole
    everywhere = DTensor.from_local(whole, p.device_mesh, [Replicate()] * p.device_mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=p.placements)
