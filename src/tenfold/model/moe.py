"""Mixture of experts as in Llama 4: each token goes through one routed expert (in general the top k) and one shared expert.

    out = shared(x) + sum over the chosen experts of expert(sigmoid(score) * x)

The score scales the *input* of the expert; experts are not linear, so scaling the output would give another result.
Reference: llama-models `models/llama4/moe.py`.

Tokens are sorted by expert once; each weight is then applied for all experts in one grouped matrix product. No token is dropped,
whatever the load. The load is kept even by `update_expert_bias` (aux-loss-free balancing), by `use_aux_loss`, by both, or not at
all.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.model.llama import FeedForward
from tenfold.spec.model import ModelSpec


class _Dispatch(torch.autograd.Function):
    """gate * row for each pair of a row and one of its experts, sorted by expert.

    Only the unsorted rows are saved for the backward pass, not a sorted copy.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gate: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(rows, gate, order, inverse)
        return rows.index_select(0, order // gate.shape[1]) * gate.flatten().index_select(0, order)[:, None]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, gate, order, inverse = ctx.saved_tensors
        (grad,) = grad_outputs
        to_gate = (grad * rows.index_select(0, order // gate.shape[1])).sum(-1).index_select(0, inverse)
        to_rows = grad.index_select(0, inverse).unflatten(0, gate.shape) * gate[..., None]
        return to_rows.sum(1), to_gate.view_as(gate), None, None


class _Combine(torch.autograd.Function):
    """The sum of the experts' outputs for each row, in the original order of the rows."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, order: Tensor, inverse: Tensor, per_token: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.per_token = per_token
        back = out.index_select(0, inverse)
        return back if per_token == 1 else back.unflatten(0, (-1, per_token)).sum(1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (order,) = ctx.saved_tensors
        return grad_outputs[0].index_select(0, order // ctx.per_token), None, None, None


class GroupedLinear(nn.Module):
    """One matrix for each group of rows: `weight` [groups, out, in], no bias.

    `product` is the grouped matrix product; fp8 and expert parallelism replace it.
    """

    def __init__(self, groups: int, fan_in: int, fan_out: int):
        super().__init__()
        self.product: Callable[..., Tensor] = torch._grouped_mm
        self.weight = nn.Parameter(torch.empty(groups, fan_out, fan_in))
        nn.init.normal_(self.weight, std=fan_in**-0.5)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """[rows, out] for x [rows, in] sorted by group; `ends` int32 [groups] is the index after the last row of each group."""
        weight: Tensor = self.weight
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
        return self.product(x, weight.transpose(-2, -1), offs=ends)


class Experts(nn.Module):
    """The feed-forward with experts of one layer.

    `bias` [experts] is added to the scores only when experts are chosen. `load` [experts] counts the training tokens of each
    expert since the caller last set it to zero. `aux_loss` is the balance loss of the last forward pass, and None where
    `aux_loss_weight` is 0.
    """

    bias: Tensor
    load: Tensor

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.per_token = spec.experts_per_token
        self.router = nn.Linear(spec.dim, spec.n_experts, bias=False)
        self.w1 = GroupedLinear(spec.n_experts, spec.dim, spec.expert_ffn_dim)
        self.w2 = GroupedLinear(spec.n_experts, spec.expert_ffn_dim, spec.dim)
        self.w3 = GroupedLinear(spec.n_experts, spec.dim, spec.expert_ffn_dim)
        self.shared = FeedForward(spec.dim, spec.n_shared_experts * spec.expert_ffn_dim) if spec.n_shared_experts else None
        self.register_buffer("bias", torch.zeros(spec.n_experts))
        self.register_buffer("load", torch.zeros(spec.n_experts, dtype=torch.int64), persistent=False)
        self.aux_loss_weight = 0.0
        self.aux_loss: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The output [..., dim] for x [..., dim]."""
        return self.mixed(x, *self.route(x.flatten(0, -2)))

    def mixed(self, x: Tensor, expert: Tensor, gate: Tensor, load: Tensor) -> Tensor:
        """The output of the chosen experts and the shared expert for x [..., dim]; the other arguments are the results of `route`.

        Activation checkpointing may recompute this in the backward pass. It must not recompute `route`, which counts the load.
        """
        rows = x.flatten(0, -2)
        order = expert.flatten().argsort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        routed = _Dispatch.apply(rows, gate, order, inverse)
        out = _Combine.apply(self.through(routed, load), order, inverse, self.per_token).view(x.shape)
        return out if self.shared is None else out + self.shared(x)

    def through(self, routed: Tensor, load: Tensor) -> Tensor:
        """The experts' outputs [N, dim] for rows [N, dim] sorted by expert; `load` [experts] is the number of rows of each."""
        ends = load.cumsum(0).int()
        return self.w2(F.silu(self.w1(routed, ends)) * self.w3(routed, ends), ends)

    def route(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For rows [N, dim]: the chosen experts [N, k], the factors of their inputs [N, k], and the load [experts]."""
        with torch.autocast(rows.device.type, enabled=False):
            scores = F.linear(rows.float(), self.router.weight.float())
        expert = (scores.detach() + self.bias).topk(self.per_token, -1, sorted=False).indices
        gate = scores.gather(-1, expert).sigmoid().to(rows.dtype)
        load = torch.zeros_like(self.load).scatter_add_(0, expert.flatten(), torch.ones_like(expert.flatten()))
        if torch.is_grad_enabled():  # an evaluation must not change the balance
            self.load += load
            self.aux_loss = self._aux_loss(scores, load) if self.aux_loss_weight else None
        return expert, gate, load

    def _aux_loss(self, scores: Tensor, load: Tensor) -> Tensor:
        """experts * sum of (share of tokens * mean probability): 1 for an even load (Switch, arXiv 2101.03961, eq. 4)."""
        share = load.float() / load.sum()
        return len(load) * (share * scores.softmax(-1).mean(0)).sum()


def expert_layers(model: nn.Module) -> list[Experts]:
    """The feed-forwards with experts of a model, in the order of the layers; empty for a dense model."""
    return [m for m in model.modules() if isinstance(m, Experts)]


def use_aux_loss(model: nn.Module, weight: float) -> None:
    """Add `weight` times the mean balance loss of the layers with experts to the training loss; 0 adds none."""
    for layer in expert_layers(model):
        layer.aux_loss_weight = weight


@torch.no_grad()
def update_expert_bias(model: nn.Module, rate: float, keep: float = 1.0, group: Any = None) -> None:
    """Aux-loss-free load balancing (Wang et al., arXiv 2408.15664), to be called once per step.

    Raises by `rate` the bias of each expert whose `load`, summed over all processes of `group`, is below the mean of its layer,
    lowers the bias of those above it, and then multiplies all biases by `keep`. A checkpoint in Llama 4's format has no place for
    a bias, so the trainer lets `keep` fall to 0 towards the end of a run.
    """
    for layer in expert_layers(model):
        load = layer.load.float()
        if dist.is_initialized():
            dist.all_reduce(load, group=group)
        layer.bias.add_(torch.sign(load.mean() - load), alpha=rate).mul_(keep)


@torch.no_grad()
def router_statistics(loads: list[Tensor]) -> dict[str, Any]:
    """How evenly the experts of each layer were used, from one load [experts] per layer; empty where there are no layers.

    `expert_entropy`: the entropy of the load divided by its maximum (1 is even), averaged over layers. `expert_load_max`: the
    load of the busiest expert divided by the mean load, averaged over layers. `dead_experts`: the number of experts without any
    token. `expert_load`: each expert's share of the load of its layer.
    """
    if not loads:
        return {}
    share = torch.stack(loads).double().cpu()
    share = share / share.sum(-1, keepdim=True).clamp(min=1)
    experts = share.shape[-1]
    entropy = torch.special.entr(share).sum(-1) / torch.log(torch.tensor(float(max(2, experts))))
    return {
        "expert_entropy": entropy.mean().item(),
        "expert_load_max": share.amax(-1).mean().item() * experts,
        "dead_experts": int((share == 0).sum()),
        "expert_load": [[round(s, 4) for s in layer] for layer in share.tolist()],
    }
