"""Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon/), for matrices and stacks of matrices, batched by shape.

`torch.optim.Muon` only takes single matrices, and processes them one after another in bfloat16: for small models on a CPU, that
takes a fifth of a step.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # those of torch.optim.Muon
ITERATIONS = 5
TOGETHER_BYTES = 2**28  # of float32 matrices in a batch, so that the gathered matrices do not grow with the model's depth


def orthogonalize(g: Tensor, eps: float = 1e-7) -> Tensor:
    """Newton-Schulz iterations on each matrix of g [matrices, rows, columns], which bring its singular values close to 1.

    Computed in bfloat16 on a GPU and in float32 on a CPU.
    """
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
    """The update of `torch.optim.Muon` with adjust_lr_fn "original", for parameters of shape [(groups,) out, in].

    "original" multiplies the learning rate by sqrt(max(1, out / in)), so that an update has the same effect at every width. A
    matrix that is sharded over several processes is gathered, and every process computes the update of the whole matrix.
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
        """Update parameters whose matrices all have the same shape."""
        rows, columns = params[0].shape[-2:]
        step_size = group["lr"] * max(1.0, rows / columns) ** 0.5
        directions = orthogonalize(torch.cat([self._direction(p, group["momentum"]) for p in params]))
        for p, direction in zip(params, directions.split([p.numel() // (rows * columns) for p in params]), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(_placed_as(p, direction.view(p.shape).to(p.dtype)), alpha=-step_size)

    def _direction(self, p: Tensor, momentum: float) -> Tensor:
        """The gradient with Nesterov momentum, as [matrices, rows, columns]."""
        assert p.grad is not None
        if "momentum_buffer" not in self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
        buffer = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - momentum)
        direction = p.grad.lerp(buffer, momentum)
        whole = direction.full_tensor() if isinstance(direction, DTensor) else direction
        return whole.view(-1, *p.shape[-2:])


def _portions(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters in order, in batches of as many as `TOGETHER_BYTES` allows, but at least one."""
    together: list[Tensor] = []
    for p in params:
        if together and 4 * sum(one.numel() for one in (*together, p)) > TOGETHER_BYTES:
            yield together
            together = []
        together.append(p)
    yield together


def _placed_as(p: Tensor, whole: Tensor) -> Tensor:
    """A matrix that every process has completely, distributed like `p`: each process keeps its own part."""
    if not isinstance(p, DTensor):
        return whole
    everywhere = DTensor.from_local(whole, p.device_mesh, [Replicate()] * p.device_mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=p.placements)
