"""Parallelize a model: distribute it over processes by a layout, without changes to the model's own code.

    world = pp x dp_replicate x dp_shard x cp x tp      (adjacent ranks form a tensor-parallel group)
    dp_shard x cp x tp = rest x ep                      (adjacent ranks form an expert-parallel group)

Layers are divided over `pp`, the rows of a batch over `dp_replicate` and `dp_shard`, the positions of a row over `cp` and `tp`.
Each process computes the loss of its own rows and positions. Gradients are sums over all processes, never means, so they do not
depend on the layout.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, RowwiseParallel, parallelize_module

from tenfold.model.llama import FeedForward, Llama
from tenfold.model.moe import expert_layers
from tenfold.spec.errors import TenfoldError
from tenfold.spec.layout import Layout, check_trainer, for_world
from tenfold.train.parallel.dims import ParallelDims
from tenfold.train.parallel.expert_parallel import divide_experts, matrices
from tenfold.train.parallel.pipeline import HiddenStates, Pipeline, cut
from tenfold.train.task import Task


def parallelize(model: Llama, task: Task, layout: Layout, device: torch.device, dtype: torch.dtype = torch.float32) -> ParallelDims:
    """Distribute `model` over all processes, in place; returns this process's place. Raises TenfoldError for a layout that does not
    fit the model or the trainer.

    Weights are gathered in `dtype`, the format of matrix products. Each process keeps its share of them in float32, and gradients
    are summed in float32.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    layout = for_world(layout, world)
    if world == 1:
        return ParallelDims()
    _check(model, layout)
    line = {"pp": layout.pp} if layout.pp > 1 else {}
    replicate = layout.dp_replicate
    mesh = _mesh(device, **line, dp_replicate=replicate, dp_shard=layout.shards, tp=layout.tp)
    fine = _mesh(device, **line, dp_replicate=replicate, dp_shard=layout.dp_shard, cp=layout.cp, tp=layout.tp)
    own = cut(model, layout, fine.get_local_rank("pp")) if line else {}
    dims = _dims(mesh, fine)
    if own:
        pipeline = Pipeline(task, own, layout, mesh.get_group("pp"), HiddenStates(dtype, device))
        stage_group = _mesh(device, **line, stage=world // layout.pp).get_group("stage")
        dims = replace(dims, pipeline=pipeline, stage_group=stage_group)
    _divide_positions(model, dims, mesh, fine)
    sharded_over = mesh["dp_replicate", "dp_shard"] if replicate > 1 else mesh["dp_shard"]
    parts: list[tuple[nn.Module, DeviceMesh]] = [(part, sharded_over) for part in (*model.layers, *(own.values() or [model]))]
    if layout.ep > 1:
        wide = _mesh(device, **line, dp_replicate=replicate, rest=layout.shards * layout.tp // layout.ep, ep=layout.ep)
        parts = [*_divide_experts(model, wide), *parts]
    _shard(parts, dtype, keep_gathered=bool(own))
    if not own:
        _gather_around_the_loss(model)
    return dims


def _check(model: Llama, layout: Layout) -> None:
    """Raises TenfoldError for a layout that the trainer or this model does not support."""
    cut_rows, mtp = layout.cp * layout.tp > 1, model.mtp is not None
    faults = {
        check_trainer(layout, model.spec): True,
        "Multi-token prediction needs whole rows: set mtp = 0 in [task], or cp = 1 and tp = 1 in [parallel].": mtp and cut_rows,
        "Multi-token prediction does not work in a pipeline: set mtp = 0 in [task], or pp = 1 in [parallel].": (
            mtp and layout.pp > 1
        ),
        "A balance loss would depend on the layout, because it is computed from the tokens of one process: set "
        'load_balancing = "aux_loss_free" in [task] for several processes.': any(
            layer.aux_loss_weight for layer in expert_layers(model)
        ),
    }
    for sentence, holds in faults.items():
        if sentence and holds:
            raise TenfoldError(sentence)


def _mesh(device: torch.device, **dimensions: int) -> DeviceMesh:
    return init_device_mesh(device.type, tuple(dimensions.values()), mesh_dim_names=tuple(dimensions))


def _dims(mesh: DeviceMesh, fine: DeviceMesh) -> ParallelDims:
    r, s, c, t = (fine.get_local_rank(name) for name in ("dp_replicate", "dp_shard", "cp", "tp"))
    replicate, shard, context, tensor = (fine[name].size() for name in ("dp_replicate", "dp_shard", "cp", "tp"))
    return ParallelDims(
        rank=dist.get_rank(),
        data=replicate * shard,
        data_rank=r * shard + s,
        sequence=context * tensor,
        sequence_rank=c * tensor + t,
        shard_group=mesh.get_group("dp_shard"),
        tensor_group=mesh.get_group("tp") if tensor > 1 else None,
    )


def _divide_positions(model: Llama, dims: ParallelDims, mesh: DeviceMesh, fine: DeviceMesh) -> None:
    """Make each process compute only its own positions of a row, from the first layer on."""
    first = dims.pipeline is None or dims.pipeline.holds_first
    if dims.sequence > 1 and first:
        model.layers[0].register_forward_pre_hook(lambda block, args: (dims.positions(args[0]), *args[1:]))
    for block in model.layers:
        if fine["tp"].size() > 1:
            _divide_matrices(block, mesh["tp"])
        if fine["cp"].size() > 1:
            _divide_context(block.attention, fine["cp"])


def _divide_experts(model: Llama, wide: DeviceMesh) -> list[tuple[nn.Module, DeviceMesh]]:
    """Divide the experts over `ep`; returns their modules, each with the mesh that it is sharded over."""
    rest = wide["dp_replicate", "rest"] if wide["dp_replicate"].size() > 1 else wide["rest"]
    for experts in expert_layers(model):
        divide_experts(experts, wide["ep"])
    return [(stack, rest) for experts in reversed(expert_layers(model)) for stack in matrices(experts)]


def _shard(parts: list[tuple[nn.Module, DeviceMesh]], dtype: torch.dtype, keep_gathered: bool) -> None:
    """Apply FSDP (`fully_shard`) to each part.

    `keep_gathered`, for pipelines: weights are gathered once per step instead of once per micro-batch, because the deferred passes
    of the zero-bubble schedule need them gathered.
    """
    half = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = MixedPrecisionPolicy() if dtype == torch.float32 else half
    for part, over in parts:
        across = partial(_across, over.size(-1))
        reshard = False if keep_gathered else None
        fully_shard(part, mesh=over, shard_placement_fn=across, mp_policy=policy, reshard_after_forward=reshard)
        part.set_gradient_divide_factor(1.0)  # type: ignore[operator]
        part.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]


def _gather_around_the_loss(model: Any) -> None:
    """Add `model.apply_loss(loss, batch)`, which is `loss(model, batch)` with FSDP's gathering of weights around it."""
    model.apply_loss = lambda loss, batch: loss(model, batch)
    register_fsdp_forward_method(model, "apply_loss")


def _divide_matrices(block: nn.Module, mesh: DeviceMesh) -> None:
    """Tensor and sequence parallelism: outside of the divided matrices, every process holds its part of the positions."""
    gather = PrepareModuleInput(input_layouts=(Shard(1), None, None, None), desired_input_layouts=(Replicate(), None, None, None))
    plan: dict[str, Any] = {
        "attention": gather,
        "attention.wqkv": ColwiseParallel(),
        "attention.wo": RowwiseParallel(output_layouts=Shard(1)),
    }
    if isinstance(block.ffn, FeedForward):  # experts are not divided by tensor parallelism: they take each process's own positions
        plan["ffn"] = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
        plan |= {"ffn.w1": ColwiseParallel(), "ffn.w3": ColwiseParallel(), "ffn.w2": RowwiseParallel(output_layouts=Shard(1))}
    parallelize_module(block, mesh, plan)


def _divide_context(attention: Any, mesh: DeviceMesh) -> None:
    """Context parallelism as in Llama 3 (arXiv 2407.21783, section 3.3.2): each process has its own queries, and gathers all keys
    and values."""
    ranks, rank = mesh.size(), mesh.get_local_rank()

    def own(module: nn.Module, args: tuple) -> tuple:
        x, rope, mask, temperature = (*args, None)[:4]
        rope = None if rope is None else rope.chunk(ranks)[rank]
        T = x.shape[1] * ranks
        whole = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()[None, None] if mask is None else mask
        return x, rope, whole.chunk(ranks, 2)[rank], temperature

    def everyones(part: Tensor) -> Tensor:
        gathered = DTensor.from_local(part, mesh, [Shard(2)], run_check=False).redistribute(placements=[Replicate()])
        return gathered.to_local(grad_placements=[Partial()])  # gradients are summed: each process has those of its own queries

    mix: Callable[..., Tensor] = attention.mix

    def mix_all(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return mix(q, everyones(k), everyones(v), mask)

    attention.register_forward_pre_hook(own)
    attention.mix = mix_all


def _across(ranks: int, p: nn.Parameter) -> Shard:
    """The dimension that FSDP shards a weight by: the first, or the second if tensor or expert parallelism divides the first.

    A stack of matrices whose number is not a multiple of `ranks` is sharded by the rows or columns of the matrices, because FSDP
    would pad it to a multiple.
    """
    if isinstance(p, DTensor) and p.placements[-1] == Shard(0):
        return Shard(1)
    if p.ndim == 3 and p.shape[0] % ranks:
        return Shard(next((d for d in (1, 2) if p.shape[d] % ranks == 0), 0))
    return Shard(0)
