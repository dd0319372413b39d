"""Expert parallelism: the experts of a layer are divided over several processes, and tokens are sent to their experts and back.

    rows sorted by expert -> all-to-all -> own experts -> all-to-all -> rows in their original order

The processes first exchange how many rows they have for each expert. The exchange of rows is then as uneven as the load, and no
token is dropped (as in GShard, arXiv 2006.16668, section 3.2, but without a capacity limit). The backward pass sends the gradients
the opposite way.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tenfold.model.moe import Experts


def divide_experts(experts: Experts, mesh: DeviceMesh) -> None:
    """Divide the experts evenly over the one-dimensional `mesh`, in place, and make their forward pass exchange rows."""
    for grouped in matrices(experts):
        # Every process has the same weights and keeps its own part of them.
        part = distribute_tensor(grouped.weight.detach(), mesh, [Shard(0)], src_data_rank=None)
        grouped.weight = nn.Parameter(part)
        grouped.product = _local_product(grouped.product)
    own = experts.through
    group, processes = mesh.get_group(), mesh.size()

    def exchanged(routed: Tensor, load: Tensor) -> Tensor:
        theirs = torch.empty_like(load)
        dist.all_to_all_single(theirs, load, group=group)
        counts = theirs.view(processes, -1)  # the rows that each process has for each of this process's experts
        send, receive = _splits(load.view(processes, -1), counts, len(routed))
        arrived = _Exchange.apply(routed, send, receive, group)
        label = torch.arange(counts.numel(), device=load.device).remainder(counts.shape[1])
        order = label.repeat_interleave(theirs, output_size=len(arrived)).argsort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        out = own(arrived.index_select(0, order), counts.sum(0))
        return _Exchange.apply(out.index_select(0, inverse), receive, send, group)

    experts.through = exchanged  # type: ignore[method-assign]


def matrices(experts: Experts) -> list[Any]:
    """The `GroupedLinear` modules of a layer's routed experts."""
    return [experts.w1, experts.w2, experts.w3]


class _Exchange(torch.autograd.Function):
    """All-to-all of rows [N, dim]: sends `send[i]` rows to process i, in order, and receives `receive[i]` rows from it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, send: list[int], receive: list[int], group: Any) -> Tensor:
        ctx.way_back = receive, send, group
        return _exchange(rows, send, receive, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(grad_outputs[0], *ctx.way_back), None, None, None


def _exchange(rows: Tensor, send: list[int], receive: list[int], group: Any) -> Tensor:
    out = rows.new_empty(sum(receive), rows.shape[1])
    dist.all_to_all_single(out, rows.contiguous(), receive, send, group=group)
    return out


def _splits(own: Tensor, theirs: Tensor, rows: int) -> tuple[list[int], list[int]]:
    """How many rows go to, and how many come from, each process. `own` and `theirs` [processes, experts] are the numbers of rows
    that this process has for each expert of the others, and they for its own; `rows` is how many this process has in all."""
    if isinstance(own, FakeTensor):  # a dry run has no loads, and assumes even ones
        even = [rows // len(own) + (i < rows % len(own)) for i in range(len(own))]
        return even, even
    send, receive = torch.stack((own.sum(1), theirs.sum(1))).tolist()
    return send, receive


def _local_product(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def multiply(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
        return product(x, weight.to_local() if isinstance(weight, DTensor) else weight, offs=offs)

    return multiply
