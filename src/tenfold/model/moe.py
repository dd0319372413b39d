"""Mixture of experts as Llama 4 has it: each token goes through one routed expert and one shared one.

    out = shared(x) + sum over the chosen experts of expert(sigmoid(score) * x)

The score scales the *input* of the expert; because experts are not linear, scaling the output would be different.
Reference: llama-models `models/llama4/moe.py`.

The tokens are sorted by expert once; all experts are then one grouped matrix product per weight. No token is
dropped, whatever the load. `update_expert_bias` (aux-loss-free balancing) and `use_aux_loss` keep the load even; either,
both or none may be used.
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
    """gate * row of each (row, choice), sorted by expert. The backward pass keeps the unsorted rows, not a sorted copy."""

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
    """Each row's sum of its experts' outputs, in the order of the rows."""

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
    """One matrix for each group of rows: `weight` [groups, out, in], no bias. `product` multiplies."""

    def __init__(self, groups: int, fan_in: int, fan_out: int):
        super().__init__()
        self.product: Callable[..., Tensor] = torch._grouped_mm
        self.weight = nn.Parameter(torch.empty(groups, fan_out, fan_in))
        nn.init.normal_(self.weight, std=fan_in**-0.5)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """x [rows, in] sorted by group, `ends` int32 [groups] the row after the last of each: [rows, out]."""
        weight: Tensor = self.weight
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
        return self.product(x, weight.transpose(-2, -1), offs=ends)


class Experts(nn.Module):
    """The routed feed-forward of one layer.

    `bias` [experts] is added to the scores when experts are chosen, and to nothing else; `load` [experts] counts the
    tokens that each has been trained on since it was last set to zero; `aux_loss` is that of the last forward pass, where
    `aux_loss_weight` is not zero.
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
        """x [..., dim]."""
        return self.mixed(x, *self.route(x.flatten(0, -2)))

    def mixed(self, x: Tensor, expert: Tensor, gate: Tensor, load: Tensor) -> Tensor:
        """The output of the chosen experts and the shared one for x [..., dim]; the rest is what `route` gave.

        It can be computed again in the backward pass; `route` cannot, because it counts the load.
        """
        rows = x.flatten(0, -2)
        order = expert.flatten().argsort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        routed = _Dispatch.apply(rows, gate, order, inverse)
        out = _Combine.apply(self.through(routed, load), order, inverse, self.per_token).view(x.shape)
        return out if self.shared is None else out + self.shared(x)

    def through(self, routed: Tensor, load: Tensor) -> Tensor:
        """The experts' output for rows [N, dim] sorted by expert, of which each has `load` [experts]."""
        ends = load.cumsum(0).int()
        return self.w2(F.silu(self.w1(routed, ends)) * self.w3(routed, ends), ends)

    def route(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For rows [N, dim]: experts [N, k], the factors [N, k] of their inputs, and the load [experts]."""
        with torch.autocast(rows.device.type, enabled=False):
            scores = F.linear(rows.float(), self.router.weight.float())
        expert = (scores.detach() + self.bias).topk(self.per_token, -1, sorted=False).indices
        gate = scores.gather(-1, expert).sigmoid().to(rows.dtype)
        load = torch.zeros_like(self.load).scatter_add_(0, expert.flatten(), torch.ones_like(expert.flatten()))
        if torch.is_grad_enabled():  # an evaluation moves nothing
            self.load += load
            self.aux_loss = self._aux_loss(scores, load) if self.aux_loss_weight else None
        return expert, gate, load

    def _aux_loss(self, scores: Tensor, load: Tensor) -> Tensor:
        """experts x sum of (share of tokens x mean probability): 1 where the load is even (Switch Transformer, eq. 4)."""
        share = load.float() / load.sum()
        return len(load) * (share * scores.softmax(-1).mean(0)).sum()


def expert_layers(model: nn.Module) -> list[Experts]:
    """The routed feed-forwards of a model, first layer first; none for a dense one."""
    return [m for m in model.modules() if isinstance(m, Experts)]


def use_aux_loss(model: nn.Module, weight: float) -> None:
    """Add `weight` times the mean balance loss of the expert layers to the training loss; 0 leaves it out."""
    for layer in expert_layers(model):
        layer.aux_loss_weight = weight


@torch.no_grad()
def update_expert_bias(model: nn.Module, rate: float, keep: float = 1.0, group: Any = None) -> None:
    """Aux-loss-free balancing (Wang et al., arXiv 2408.15664), once a step.

    Raise by `rate` the bias of each expert that had less than its share since the loads were last zero, lower the others,
    then multiply all by `keep`. Loads are those of all processes of `group`. A checkpoint in Llama 4's format has no place
    for a bias, so a run fades it out: `keep` falls to 0 at its end.
    """
    for layer in expert_layers(model):
        load = layer.load.float()
        if dist.is_initialized():
            dist.all_reduce(load, group=group)
        layer.bias.add_(torch.sign(load.mean() - load), alpha=rate).mul_(keep)


@torch.no_grad()
def router_statistics(loads: list[Tensor]) -> dict[str, Any]:
    """How evenly each layer's experts were used, from their loads [experts].

    `expert_entropy` is the load's entropy as a share of the greatest (1 is even) and `expert_load_max` the busiest
    expert's load beside the mean, both averaged over layers; `dead_experts` counts those that had no token at all;
    `expert_load` has each expert's share of its layer.
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
