"""Structured pruning: the channels, heads, neurons and layers that matter least are cut out of a model.

Importance is the mean magnitude of an activation on a few rows of text (Minitron, arXiv 2407.14679): for a channel the outputs of
the norms, for a key-value head with its queries the input of the output projection, for a neuron the input of the down projection.
A layer matters by how much it turns the hidden state, 1 - cosine (ShortGPT, arXiv 2403.03853). The result is a plain Llama of
smaller shape, whose quality distillation restores.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.model.build import make_model
from tenfold.model.llama import Block, Llama
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec

_LEAST = 0.2  # share of each width that is kept at least; with less, too little of the model is left to distil
_STEP = 8  # widths are multiples of this


@dataclass
class Importance:
    """Scores of the `channels` [dim], of each layer's `heads` [kv heads] and `neurons` [ffn_dim], and of the `layers`."""

    channels: Tensor
    heads: list[Tensor]
    neurons: list[Tensor]
    layers: list[float]


def smaller_shape(spec: ModelSpec, keep: float, layers: int | None = None) -> ModelSpec:
    """The largest shape with at most the share `keep` of the parameters: `layers` layers, and all widths cut by the same share.

    Without `layers` all layers are kept. Raises TenfoldError where `keep` would cut too much at once, or the model is no dense
    Llama 3 without biases.
    """
    if spec.family != "llama3" or spec.has_biases:
        raise TenfoldError(f"{spec.name} is no dense model of llama3 without biases, and only such models can be pruned.")
    layers = spec.n_layers if layers is None else layers
    if not 1 <= layers <= spec.n_layers:
        raise TenfoldError(
            f"{spec.name} has {spec.n_layers} layers, and {layers} cannot be kept: give --layers from 1 to {spec.n_layers}."
        )
    group, most = spec.n_heads // spec.n_kv_heads, keep * spec.parameters().total
    for dim in range(spec.dim, int(_LEAST * spec.dim) - 1, -1):
        share = dim / spec.dim
        if dim % _STEP and dim != spec.dim:
            continue
        kv_heads = max(1, round(share * spec.n_kv_heads))
        ffn = max(_STEP, round(share * spec.ffn_dim / _STEP) * _STEP) if share < 1 else spec.ffn_dim
        found = replace(
            spec, name=f"{spec.name}-pruned", dim=dim, n_layers=layers, n_kv_heads=kv_heads, n_heads=group * kv_heads, ffn_dim=ffn
        )
        if found.parameters().total <= most:
            return found
    raise TenfoldError(
        f"{spec.name} cannot be pruned to {keep:g} of its parameters at once, which would leave less than {_LEAST:g} of its width: "
        "raise --keep, distil, and prune the student again."
    )


@torch.no_grad()
def importance(model: Llama, rows: Tensor) -> Importance:
    """The importance scores of a model on rows of tokens int64 [rows, T], which are read one at a time."""
    spec = model.spec
    found = Importance(
        torch.zeros(spec.dim),
        [torch.zeros(spec.n_kv_heads) for _ in model.layers],
        [torch.zeros(spec.ffn_dim) for _ in model.layers],
        [0.0] * spec.n_layers,
    )
    with _watched(model, found):
        for row in rows:
            model.hidden(row[None])
    return found


@contextmanager
def _watched(model: Llama, found: Importance) -> Iterator[None]:
    """Inside the block, forward passes of the model add their activations to `found`."""

    def channels(_: nn.Module, inputs: Any, out: Tensor) -> None:
        found.channels += out.abs().mean((0, 1))

    def block_hooks(number: int, block: Block) -> Iterator[Any]:
        def heads(_: nn.Module, inputs: tuple[Tensor]) -> None:
            per_head = inputs[0].unflatten(-1, (len(found.heads[number]), -1))
            found.heads[number] += per_head.norm(dim=-1).mean((0, 1))

        def neurons(_: nn.Module, inputs: tuple[Tensor]) -> None:
            found.neurons[number] += inputs[0].abs().mean((0, 1))

        def turned(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            found.layers[number] += 1 - float(torch.cosine_similarity(inputs[0], out, dim=-1).mean())

        yield block.attention.wo.register_forward_pre_hook(heads)
        yield block.ffn.w2.register_forward_pre_hook(neurons)  # type: ignore[union-attr]
        yield block.register_forward_hook(turned)
        yield from (norm.register_forward_hook(channels) for norm in (block.attention_norm, block.ffn_norm))

    hooks = [hook for number, block in enumerate(model.layers) for hook in block_hooks(number, block)]
    hooks.append(model.norm.register_forward_hook(channels))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def pruned(model: Llama, spec: ModelSpec, scores: Importance) -> Llama:
    """A model of shape `spec` made of the most important parts of `model`, which keep their order."""
    student = make_model(spec)
    channels = _best(scores.channels, spec.dim)
    layers = _best(torch.tensor(scores.layers), spec.n_layers).tolist()
    student.embedding.weight.copy_(model.embedding.weight[:, channels])
    student.norm.weight.copy_(model.norm.weight[channels])
    if not spec.tied:
        student.head.weight.copy_(model.head.weight[:, channels])
    for mine, number in zip(student.layers, layers, strict=True):
        heads, neurons = _best(scores.heads[number], spec.n_kv_heads), _best(scores.neurons[number], spec.ffn_dim)
        _copy_block(mine, model.layers[number], channels, heads, neurons)
    return student


def _best(scores: Tensor, count: int) -> Tensor:
    return scores.topk(count).indices.sort().values


def _copy_block(mine: Block, theirs: Block, channels: Tensor, heads: Tensor, neurons: Tensor) -> None:
    """Copy the parts with the given numbers. In `wqkv` each key-value head follows its queries: [q ... q, k, v]."""
    groups, head_dim = theirs.attention.group + 2, theirs.attention.head_dim
    wqkv = theirs.attention.wqkv.weight.unflatten(0, (-1, groups * head_dim))[heads]
    mine.attention.wqkv.weight.copy_(wqkv.flatten(0, 1)[:, channels])
    wo = theirs.attention.wo.weight.unflatten(1, (-1, (groups - 2) * head_dim))[:, heads]
    mine.attention.wo.weight.copy_(wo.flatten(1, 2)[channels])
    for name in ("attention_norm", "ffn_norm"):
        getattr(mine, name).weight.copy_(getattr(theirs, name).weight[channels])
    ours: Any = mine.ffn
    given: Any = theirs.ffn
    for name in ("w1", "w3"):
        getattr(ours, name).weight.copy_(getattr(given, name).weight[neurons][:, channels])
    ours.w2.weight.copy_(given.w2.weight[channels][:, neurons])
