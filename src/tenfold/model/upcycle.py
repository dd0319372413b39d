"""Sparse upcycling: convert a dense Llama 3 to a Llama 4 with experts, as a start for more training."""

from dataclasses import replace

import torch
from torch import nn

from tenfold.model.llama import FeedForward, Llama
from tenfold.model.llama4 import Llama4
from tenfold.model.moe import Experts
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec


def upcycled_spec(old: ModelSpec, n_experts: int) -> ModelSpec:
    """The spec that a dense Llama 3 with spec `old` is upcycled to. Raises TenfoldError if it cannot be upcycled."""
    if old.family != "llama3":
        raise TenfoldError(f"{old.name} is of family {old.family}: only a dense Llama 3 can be made into experts.")
    if n_experts < 1 or old.ffn_dim % 2:
        raise TenfoldError(
            f"{old.name} cannot be made into {n_experts} experts: its feed-forward of {old.ffn_dim} must divide into a "
            "shared and a routed half, and there must be at least one expert."
        )
    return replace(old, family="llama4", n_experts=n_experts, expert_ffn_dim=old.ffn_dim // 2)


@torch.no_grad()
def upcycle(dense: Llama, n_experts: int, router_std: float = 1e-3, seed: int = 0) -> Llama4:
    """A Llama 4 with experts in every layer that computes nearly the same function as `dense`, with the same active compute.

    Sparse upcycling (Komatsuzaki et al., arXiv 2212.05055) with a shared expert: half of the hidden units of each feed-forward
    become the shared expert, and the other half is copied to every routed expert. The new router's weights are close to zero, so
    it multiplies the input of an expert by about 1/2; the routed experts' `w1` and `w3` are doubled to compensate. Raises
    TenfoldError if the width of the feed-forward is odd.
    """
    new = Llama4(upcycled_spec(dense.spec, n_experts)).to(dense.embedding.weight.dtype)
    half = new.spec.expert_ffn_dim
    generator = torch.Generator().manual_seed(seed)
    same: list[tuple[nn.Module, nn.Module]] = [(new.embedding, dense.embedding), (new.norm, dense.norm), (new.head, dense.head)]
    for block, source in zip(new.layers, dense.layers, strict=True):
        same += [(getattr(block, part), getattr(source, part)) for part in ("attention_norm", "attention", "ffn_norm")]
        experts, ffn = block.ffn, source.ffn
        assert isinstance(experts, Experts) and isinstance(ffn, FeedForward) and experts.shared is not None
        experts.router.weight.normal_(std=router_std, generator=generator)
        for name in ("w1", "w3"):
            weight = getattr(ffn, name).weight
            getattr(experts.shared, name).weight.copy_(weight[:half])
            getattr(experts, name).weight.copy_(2 * weight[half:].expand(n_experts, -1, -1))
        experts.shared.w2.weight.copy_(ffn.w2.weight[:, :half])
        experts.w2.weight.copy_(ffn.w2.weight[:, half:].expand(n_experts, -1, -1))
    for ours, theirs in same:
        ours.load_state_dict(theirs.state_dict())
    return new
