"""Rotations that do not change what a model computes, and spread outlying weights over all channels before quantisation.

The residual stream is rotated by one random orthogonal matrix, and the values of each head by another; the gains of the norms are
folded into the matrices after them (QuaRot, arXiv 2404.00456; R1 and R2 of SpinQuant, arXiv 2405.16406, here random and not
learned). Inference costs nothing more. A tied embedding is untied, since the gain of the last norm is folded into the head only.
"""

from dataclasses import replace

import torch
from torch import Tensor

from tenfold.model.build import make_model
from tenfold.model.llama import Block, FeedForward, Llama
from tenfold.spec.errors import TenfoldError


@torch.no_grad()
def rotated(model: Llama, seed: int = 0) -> Llama:
    """A model that computes the same in rotated channels. Raises TenfoldError for any but a dense Llama 3 without biases."""
    spec = replace(model.spec, tied=False)
    if spec.family != "llama3" or spec.has_biases:
        raise TenfoldError(f"{spec.name} is no dense model of llama3 without biases, and only such models can be rotated.")
    generator = torch.Generator().manual_seed(seed)
    turn, turn_values = (_orthogonal(size, generator) for size in (spec.dim, spec.head_dim))
    found = make_model(spec)
    found.embedding.weight.copy_(model.embedding.weight.double() @ turn)
    found.head.weight.copy_((model.head.weight.double() * model.norm.weight.double()) @ turn)
    found.norm.weight.fill_(1)
    for mine, theirs in zip(found.layers, model.layers, strict=True):
        _rotate_block(mine, theirs, turn, turn_values)
    return found


def _orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix, float64 [size, size]."""
    q, r = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    return q * r.diagonal().sign()


def _rotate_block(mine: Block, theirs: Block, turn: Tensor, turn_values: Tensor) -> None:
    ffn, given = mine.ffn, theirs.ffn
    assert isinstance(ffn, FeedForward) and isinstance(given, FeedForward)
    for norm in (mine.attention_norm, mine.ffn_norm):
        norm.weight.fill_(1)
    attention = theirs.attention
    wqkv = (attention.wqkv.weight.double() * theirs.attention_norm.weight.double()) @ turn
    heads = wqkv.unflatten(0, (-1, attention.group + 2, attention.head_dim))
    heads[:, -1] = turn_values.T @ heads[:, -1]
    mine.attention.wqkv.weight.copy_(wqkv)
    wo = attention.wo.weight.double().unflatten(1, (-1, attention.head_dim)) @ turn_values
    mine.attention.wo.weight.copy_(turn.T @ wo.flatten(1))
    for ours, other in ((ffn.w1, given.w1), (ffn.w3, given.w3)):
        ours.weight.copy_((other.weight.double() * theirs.ffn_norm.weight.double()) @ turn)
    ffn.w2.weight.copy_(turn.T @ given.w2.weight.double())
